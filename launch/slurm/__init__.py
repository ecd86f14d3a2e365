"""Launching as jobs of Slurm."""
