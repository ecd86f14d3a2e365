"""How a sample of each modality becomes what the network sees: its bytes are read, and a transform draws a picture.

All that follows (collation, transport, mixing, normalisation, evaluation, prediction) knows pictures alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import torch

from configs.schema import Data
from configs.schema.section import Modality
from datamodules.images.decoding import PIL_MODES, EncodedImage, open_image
from datamodules.streaming.transforms import evaluation_transform, training_transform
from datamodules.text.drawing import TextDrawing
from datamodules.text.reading import read_text


class PictureTransform(Protocol):
    """Draws what the network sees.

    Attributes:
        image_size: Side of the picture in pixels.
    """

    image_size: int

    def __call__(self, sample: Any, /) -> torch.Tensor:
        """What was read, as (C, image_size, image_size) uint8; of several views (views, C, …).

        What is random is drawn from Python's, NumPy's and torch's global generators, which are seeded for each sample.

        Raises:
            BadSampleError: If it cannot be used.
        """


class Signal(NamedTuple):
    """What a modality is made of. Its extensions in a shard are those of datamodules/indexing/scan.py.

    Attributes:
        read: A sample's bytes, and the channels that are wanted, to what the transforms take; BadSampleError if they
            are damaged.
        training: The training transform for settings and a side in pixels.
        evaluation: That of evaluation.
    """

    read: Callable[[bytes, int], Any]
    training: Callable[[Data, int], PictureTransform]
    evaluation: Callable[[Data, int], PictureTransform]


def _read_image(contents: bytes, in_chans: int) -> EncodedImage:
    return open_image(contents, PIL_MODES[in_chans])


def _read_text(contents: bytes, in_chans: int) -> str:
    assert in_chans == 1
    return read_text(contents)


class _Drawn:
    """Draws a text as (1, image_size, image_size)."""

    def __init__(self, data: Data, image_size: int, *, randomly: bool) -> None:
        self.image_size = image_size
        self._drawing = TextDrawing(data.text, image_size, randomly=randomly and data.augmentation.enabled)

    def __call__(self, text: str) -> torch.Tensor:
        return torch.from_numpy(self._drawing.draw(text)).unsqueeze(0)


def _read_recording(contents: bytes, in_chans: int) -> Any:
    from datamodules.audio.decoding import Recording  # needs an extra, as what draws it does

    assert in_chans == 1
    return Recording(contents)


def _spectrogram(data: Data, image_size: int, *, augment: bool) -> PictureTransform:
    from datamodules.audio.spectrogram import Spectrogram

    return Spectrogram(data.audio, image_size, augment=augment)


def _training_spectrogram(data: Data, image_size: int) -> PictureTransform:
    return _spectrogram(data, image_size, augment=data.augmentation.enabled)


SIGNALS: Final[Mapping[Modality, Signal]] = {
    "image": Signal(_read_image, training_transform, evaluation_transform),
    "text": Signal(_read_text, partial(_Drawn, randomly=True), partial(_Drawn, randomly=False)),
    "audio": Signal(_read_recording, _training_spectrogram, partial(_spectrogram, augment=False)),
}
