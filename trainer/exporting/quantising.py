"""ONNX in 8 bits: static quantisation by ONNX Runtime, calibrated on images of the run, and what it costs and gives."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from trainer.exporting.onnx_files import INPUT, session

ROUNDS = 7
"""Of timing, in turns, so that what else the machine does meets all files alike."""
ROUND_S = 0.3
MEGABYTE = 1e6

Run = Callable[[torch.Tensor], torch.Tensor]


class Measured(NamedTuple):
    """What a file is like on this machine's CPU.

    Attributes:
        file: Its name.
        megabytes: Of 10^6 bytes.
        images_per_second: Median of several rounds, in batches of ``batch_size``.
        batch_size: Images at once.
        top1: Share of right answers.
        samples: Over which.
    """

    file: str
    megabytes: float
    images_per_second: float
    batch_size: int
    top1: float
    samples: int


class _Calibration:
    """Batches, as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[torch.Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self._batches, None)
        return None if images is None else {INPUT: images.numpy()}


def quantise(file: Path, target: Path, batches: Iterable[torch.Tensor]) -> None:
    """Write an int8 copy: weights by output channel, activations by tensor, in quantise-dequantise nodes.

    Args:
        file: The fp32 file.
        target: To write.
        batches: Images (N, C, H, W) float32, normalised, whose activations set the ranges.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(dir=target.parent) as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Calibration(batches),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(quantised)
        metadata = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
        onnx.helper.set_model_props(model, metadata)  # quantising may lose it
        onnx.save(model, quantised)
        quantised.replace(target)


def measure(files: Sequence[Path], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> list[Measured]:
    """Size, speed and top-1 of ONNX files, all over the same images.

    Args:
        files: ONNX.
        batches: Images (N, C, H, W) float32, normalised, and targets (N,) int64; the first one is timed.
    """
    runs = [session(file) for file in files]
    correct, samples, first = [0] * len(files), 0, None
    for images, targets in batches:
        first = images if first is None else first
        samples += len(targets)
        for number, run in enumerate(runs):
            correct[number] += int((run(images).argmax(1) == targets).sum())
    assert first is not None
    speeds = _speeds(runs, first)
    return [
        Measured(file.name, file.stat().st_size / MEGABYTE, speed, len(first), right / samples, samples)
        for file, speed, right in zip(files, speeds, correct, strict=True)
    ]


def _speeds(runs: Sequence[Run], images: torch.Tensor) -> list[float]:
    rates: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, found in zip(runs, rates, strict=True):
            begin, done = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - begin) < ROUND_S or not done:
                run(images)
                done += len(images)
            found.append(done / elapsed)
    return [statistics.median(found) for found in rates]
