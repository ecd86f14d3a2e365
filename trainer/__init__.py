"""The process that runs on each rank: model, loop, checkpoints, tracking."""
