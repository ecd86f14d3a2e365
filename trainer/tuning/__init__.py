"""``effnet tune``: settings that are found by trying them."""
