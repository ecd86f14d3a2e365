"""Sweeps: many runs of one configuration, over its settings."""
