"""The command line and the launchers. Never imports torch; knows the trainer as ``python -m trainer``."""
