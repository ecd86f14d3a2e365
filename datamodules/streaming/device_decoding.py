"""From encoded batches to those that the network takes, on the device: nvJPEG through torchvision, and torch's filters.

What the device cannot decode goes the CPU's way from the start, so that images, substitutes and errors are the same.
Resizing rounds once, where Pillow and the CPU's filters do so after each direction: a difference of 0.07 to 0.18 grey
levels (photographs of 500x375 to 224). What nvJPEG's own pixels add has not been measured. Where it overlooks damage
that the CPU's way reports, the image is used as it came.

torchvision (0.29) calls its JPEG functions deprecated in favour of TorchCodec's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import simplejpeg
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from configs.problems import ConfigError, Problem
from datamodules.streaming.crops import FILTERS, Geometry
from datamodules.streaming.decode import Decoded
from datamodules.streaming.encoded import EncodedBatch
from datamodules.streaming.loaders import Batch
from datamodules.streaming.shard_reader import RawSample, ShardReader
from datamodules.streaming.side_stream import SideStream
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import say

PIXELS_AT_ONCE = 2**26
"""Bound on what is decoded before it is resized: 192 MiB. Images of ImageNet have 0.2 million pixels."""


class DeviceDecoder:
    """Decodes the batches of one split.

    Args:
        decode: The CPU's way, for samples that the device cannot decode.
        source: Where the samples come from.
        image_sizes: Side in pixels of the images to come, in each stage of training.
    """

    def __init__(self, decode: Callable[[RawSample], Decoded], source: ShardSource, *image_sizes: int) -> None:
        self._decode = decode
        self._source = source
        self._image_sizes = image_sizes
        self._beside = SideStream()
        self._checked: torch.device | None = None

    def __call__(self, batch: EncodedBatch, device: torch.device) -> Batch:
        """Decode on a device; on a GPU beside what it computes for the batch before.

        Raises:
            ConfigError: If the device decodes nothing.
            DataError: Where the CPU's way raises one.
        """
        if self._checked != device:
            check(device)
            self._checked = device
        return self._beside(lambda: self._decoded(batch, device), device)

    def _decoded(self, batch: EncodedBatch, device: torch.device) -> Batch:
        side = self._image_sizes[batch.stage]
        images = torch.empty(len(batch.lengths), side, side, 3, dtype=torch.uint8, device=device)
        contents = torch.split(batch.contents, batch.lengths)
        for group in _groups(batch.geometries):
            files = [contents[at] for at, _ in group]
            for (at, geometry), pixels in zip(group, decode(files, device), strict=True):
                if pixels is not None and pixels.shape == (3, *geometry.image_size[::-1]):
                    images[at] = _resized(pixels, geometry).permute(1, 2, 0)
                else:
                    images[at] = self._on_cpu(batch, at).permute(1, 2, 0)
        for at in range(len(contents)):
            if batch.geometries[at] is None:
                images[at].copy_(contents[at].view(side, side, 3), non_blocking=True)
        columns = (batch.targets, batch.samples, batch.weights, batch.substituted)
        return Batch(images.permute(0, 3, 1, 2), *(column.to(device, non_blocking=True) for column in columns))

    def _on_cpu(self, batch: EncodedBatch, at: int) -> torch.Tensor:
        """The image of a sample, or of the one that takes its place, which the batch's columns then tell of."""
        with closing(ShardReader(self._source.index, self._source.cache)) as reader:
            sample = reader.read(int(batch.samples[at]))
        say(f"{sample['__url__']}: sample {sample['__key__']}: the device cannot decode it, so the CPU tries")
        place = {"__epoch__": batch.epochs[at], "__repeat__": batch.repeats[at], "__stage__": batch.stage}
        belonging = place | {"__weight__": float(batch.weights[at])}
        image, batch.targets[at], batch.samples[at], _, substituted = self._decode(sample | belonging)
        batch.substituted[at] |= substituted
        return image


def check(device: torch.device) -> None:
    """Refuse a device that decodes nothing: the CPU would do all of its work.

    Raises:
        ConfigError: If it does not decode a JPEG that is good.
    """
    good = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), dtype=np.uint8))
    try:
        decode_jpeg([torch.frombuffer(bytearray(good), dtype=torch.uint8)], ImageReadMode.RGB, device)
    except RuntimeError as error:
        accepted = f"cpu: torchvision decodes no JPEG on {device} ({str(error).partition(chr(10))[0]})"
        raise ConfigError([Problem(key="data.decoder", received="nvjpeg", accepted=accepted)]) from error


def decode(files: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor | None]:
    """Decode (bytes,) uint8 files on the CPU's side to (3, height, width) uint8; None for what cannot be decoded."""
    if device.type == "cuda":
        # torchvision decodes on a stream of its own, into memory that work queued on this one may still read
        # (https://github.com/pytorch/vision/pull/9606).
        torch.cuda.current_stream(device).synchronize()
    try:
        found: list[torch.Tensor | None] = decode_jpeg(list(files), ImageReadMode.RGB, device)
    except RuntimeError:  # it does not say for which file
        return [None] if len(files) == 1 else [pixels for file in files for pixels in decode([file], device)]
    return found


def _groups(geometries: Sequence[Geometry | None]) -> Iterator[list[tuple[int, Geometry]]]:
    """Places and geometries of a batch's JPEGs, as many at a time as may be decoded at once."""
    group: list[tuple[int, Geometry]] = []
    total = 0
    for at, geometry in enumerate(geometries):
        if geometry is None:
            continue
        width, height = geometry.image_size
        if group and total + width * height > PIXELS_AT_ONCE:
            yield group
            group, total = [], 0
        group.append((at, geometry))
        total += width * height
    if group:
        yield group


def _resized(image: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """(3, height, width) uint8 to the network's size; in float, for on GPUs the filters take nothing else."""
    top, left, rows, columns = geometry.box
    part = image[:, top : top + rows, left : left + columns].float()
    vertical, horizontal = (1 / scale for scale in geometry.scales) if geometry.scales is not None else (None, None)
    found = FILTERS[geometry.interpolation](part.unsqueeze(0), geometry.size, False, vertical, horizontal)
    return geometry.finish(found.squeeze(0).round().clamp(0, 255).to(torch.uint8))
