"""Examining the nodes of a job before it trains, or one machine by itself: ``effnet doctor`` and ``--preflight``."""
