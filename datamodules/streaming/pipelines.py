"""The loaders of a run, from its settings and a plan: source, decoding in workers or on the device, batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from configs.schema import Data
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.splits import shard_cache
from datamodules.storage.traffic import Counts, Traffic
from datamodules.streaming.crops import CenterCrop, RandomCrop
from datamodules.streaming.decode import Decode, Decoded, Transform
from datamodules.streaming.device_decoding import DeviceDecoder
from datamodules.streaming.encoded import CollateEncoded, EncodedBatch, LeaveEncoded, WithPlace
from datamodules.streaming.loaders import AnyBatch, Batch, LoaderError, make_loader
from datamodules.streaming.plans import EvaluationPlan, Plan, TrainingPlan
from datamodules.streaming.shard_reader import RawSample
from datamodules.streaming.signals import SIGNALS, PictureTransform
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import Substituting


class Pipelines:
    """Makes loaders of training and of validation, and decodes what they leave to the device.

    Attributes:
        traffic: What the loaders of training (True) and of validation have read; their workers are there at the same
            time.
    """

    def __init__(
        self,
        data: Data,
        *,
        seed: int,
        eval_image_size: int,
        in_chans: int,
        pin_memory: bool,
        stages: Sequence[tuple[Data, int]],
    ) -> None:
        """Keep what is needed.

        Args:
            data: Settings of the run.
            seed: The run's.
            eval_image_size: Side in pixels of images in evaluation.
            in_chans: Channels of an image.
            pin_memory: Whether batches are copied to memory that a GPU reads by itself.
            stages: Of each stage of training its settings, and the side of its images in pixels.
        """
        self.traffic = {training: Traffic(max(data.num_workers, 1)) for training in (True, False)}
        self._data = data
        self._seed = seed
        self._eval_image_size = eval_image_size
        self._in_chans = in_chans
        self._pin_memory = pin_memory
        self._stages = tuple(stages)
        self._device_decoders: dict[bool, DeviceDecoder] = {}

    def training(self, index: ShardIndex, plan: TrainingPlan, *, first: int) -> DataLoader[AnyBatch | LoaderError]:
        """A loader of training batches, from number ``first`` of the plan on."""
        source = self._source(index, plan, first=first, training=True)
        draw = SIGNALS[self._data.modality].training
        return self._loader(source, [draw(data, image_size) for data, image_size in self._stages], training=True)

    def evaluation(self, index: ShardIndex, plan: EvaluationPlan) -> DataLoader[AnyBatch | LoaderError]:
        """A loader of a split's batches."""
        source = self._source(index, plan, training=False)
        transform = SIGNALS[self._data.modality].evaluation(self._data, self._eval_image_size)
        return self._loader(source, [transform], training=False)

    def decoded(self, batch: EncodedBatch, device: torch.device) -> Batch:
        """The batch that the device makes of one whose images are encoded.

        Raises:
            ConfigError: If the device decodes nothing.
            DataError: If an image is bad, and none may or can take its place.
        """
        return self._device_decoders[batch.training](batch, device)

    def total_traffic(self) -> Counts:
        """What all loaders have read, fetched and waited for."""
        return Counts(*map(sum, zip(*(each.total() for each in self.traffic.values()), strict=True)))

    def _source(self, index: ShardIndex, plan: Plan, *, training: bool, first: int = 0) -> ShardSource:
        return ShardSource(
            index,
            plan,
            first=first,
            cache=shard_cache(self._data),
            prefetch_shards=self._data.prefetch_shards,
            traffic=self.traffic[training],
        )

    def _loader(
        self, source: ShardSource, transforms: Sequence[PictureTransform], *, training: bool
    ) -> DataLoader[AnyBatch | LoaderError]:
        data = self._data
        on_cpu = self._stage(source, *transforms, training=training)
        sizes = [transform.image_size for transform in transforms]
        batch_size = data.micro_batch_size if training else data.eval_batch_size
        options: dict[str, Any] = {"batch_size": batch_size, "pin_memory": self._pin_memory}
        if data.decoder == "cpu":
            views = (data.augmentation.aug_splits if training else None) or 1
            image_bytes = views * self._in_chans * max(sizes) ** 2
            return make_loader(source, on_cpu, data, image_bytes=image_bytes, **options)
        self._device_decoders[training] = DeviceDecoder(on_cpu, source, *sizes)
        crops = [each for each in transforms if isinstance(each, RandomCrop | CenterCrop)]
        assert len(crops) == len(transforms)  # other modalities are refused beside nvjpeg
        in_workers = WithPlace(self._stage(source, *map(LeaveEncoded, crops), training=training))
        return make_loader(source, in_workers, data, collate=CollateEncoded(training=training), **options)

    def _stage(self, source: ShardSource, *transforms: Transform, training: bool) -> Callable[[RawSample], Decoded]:
        """From raw samples to those of a batch, bad ones of training replaced."""
        decode = Decode(
            *transforms,
            in_chans=self._in_chans,
            num_classes=self._data.num_classes,
            seed=self._seed if training else None,
            modality=self._data.modality,
        )
        return Substituting(decode, source) if training and self._data.max_bad_fraction else decode
