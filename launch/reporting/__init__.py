"""Reports of runs as pages of HTML."""
