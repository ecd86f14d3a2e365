"""The schema, the files and the run directory: what every part agrees on. Imports nothing of ours and never torch."""
