"""Files that a finished run becomes: weights, graphs, their description."""
