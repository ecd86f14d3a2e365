"""The network as ONNX, checked against PyTorch; how to prepare images for it is in the file's metadata."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.problems import DataError
from trainer.exporting.agreement import Difference, check_agreement
from trainer.exporting.graphs import exported_program

INPUT, OUTPUT = "images", "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """See that the packages are there, which are an extra.

    Raises:
        DataError: If one is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DataError(f"ONNX needs {', '.join(missing)}: pip install 'effnet[onnx]'")


def write_onnx(
    network: nn.Module, file: Path, *, about: dict[str, Any], input_size: tuple[int, int, int], tolerance: float
) -> Difference:
    """Write ``images`` (N, C, H, W) float32, normalised, to ``logits`` (N, num_classes), for any N, and check it.

    Args:
        network: In evaluation mode, on the CPU.
        file: To write.
        about: Goes into the metadata, each value as JSON.
        input_size: Channels, height and width of an image.
        tolerance: Largest difference to PyTorch, as a share of the largest logit.

    Raises:
        DataError: If what ONNX Runtime computes differs by more; no file is written.
    """
    import onnx

    program = torch.onnx.export(
        exported_program(network, input_size), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert program is not None
    model = program.model_proto
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        onnx.save(model, temporary)
        difference = check_agreement(
            network, session(temporary), input_size=input_size, tolerance=tolerance, what=file.name
        )
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def session(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from images to logits by ONNX Runtime on this machine's CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(runtime.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run
