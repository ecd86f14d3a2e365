"""The process that runs on each rank: model, loop, checkpoints, tracking."""

from trainer.lean_imports import leave_out_what_no_classifier_needs

leave_out_what_no_classifier_needs()
