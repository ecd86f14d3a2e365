"""Shards out of images: ``effnet shards build``."""
