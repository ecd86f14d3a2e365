"""Shards in, batches out. Knows configs only."""
