"""Planning a run before it runs: ``effnet plan``."""
