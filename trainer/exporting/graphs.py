"""The network as a graph of torch's own: a ``torch.export`` program, or TorchScript."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.exporting.agreement import Difference, check_agreement

PREPROCESSING = "preprocessing.json"
"""Of both files: in them, what `torch.export.load(…, extra_files=…)` and `torch.jit.load(…, _extra_files=…)` read."""
TRACED_BATCH = 2


def exported_program(network: nn.Module, input_size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Trace the network for batches of any size, of images (N, C, H, W) float32, normalised."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(network, (torch.randn(TRACED_BATCH, *input_size),), dynamic_shapes=dynamic)


def write_program(
    network: nn.Module, file: Path, *, about: dict[str, Any], input_size: tuple[int, int, int], tolerance: float
) -> Difference:
    """Write a ``.pt2`` file, which ``torch.export.load`` reads, and see that what is read agrees.

    Raises:
        DataError: If it does not.
    """
    temporary = file.with_name(f"tmp-{file.name}")  # torch wants the suffix
    try:
        program = exported_program(network, input_size)
        torch.export.save(program, temporary, extra_files={PREPROCESSING: json.dumps(about)})
        loaded = torch.export.load(temporary).module()
        difference = check_agreement(network, loaded, input_size=input_size, tolerance=tolerance, what=file.name)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def write_torchscript(
    network: nn.Module, file: Path, *, about: dict[str, Any], input_size: tuple[int, int, int], tolerance: float
) -> Difference:
    """Write a traced graph, which ``torch.jit.load`` reads, and see that what is read agrees.

    Raises:
        DataError: If it does not.
    """
    temporary = file.with_name(f"tmp-{file.name}")
    try:
        with torch.inference_mode():
            traced = torch.jit.trace(network, torch.randn(TRACED_BATCH, *input_size))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, temporary, _extra_files={PREPROCESSING: json.dumps(about)})
        loaded = torch.jit.load(temporary)  # type: ignore[no-untyped-call]
        difference = check_agreement(network, loaded, input_size=input_size, tolerance=tolerance, what=file.name)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return difference
