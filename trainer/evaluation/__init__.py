"""``effnet validate``: exact figures of a network on a split, of every sample once, over any number of ranks."""
