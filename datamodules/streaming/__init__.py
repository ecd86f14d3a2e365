"""From the index to batches, in the exact order."""
