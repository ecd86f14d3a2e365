"""Launching as jobs of Kubernetes."""
