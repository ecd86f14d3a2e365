"""Launching on hosts that ssh reaches."""
