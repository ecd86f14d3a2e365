"""From what a user names to the place of each sample."""
