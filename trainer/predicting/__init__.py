"""``effnet predict``: a network's answers to images."""
