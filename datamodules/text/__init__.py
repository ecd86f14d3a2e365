"""Text: read, and drawn as a picture."""
