"""The LightningDataModule: shards of ImageNet, or of anything in its form, in the exact order."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from pytorch_lightning import LightningDataModule

from configs.batches import BatchLayout
from configs.problems import DataError, UnreachableError
from configs.schema import Data
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.splits import open_split, shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.storage.traffic import Counts
from datamodules.streaming.encoded import EncodedBatch
from datamodules.streaming.loaders import EpochLoader, EvaluationLoader, TrainingStream
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.pipelines import Pipelines
from datamodules.streaming.plans import EvaluationPlan, TrainingPlan
from datamodules.streaming.position import Positions
from datamodules.streaming.shard_reader import ShardReader
from datamodules.streaming.side_stream import SideStream


class ImageNetDataModule(LightningDataModule):
    """Training batches by (seed, step), validation batches each once.

    Attributes:
        train_index: Index of the training split, after ``setup``.
        val_index: Index of the validation split, after ``setup``.
        positions: From steps to positions in the data, after ``setup``.
        next_batch: Global batch that the first step of this attempt takes, whatever a checkpoint says; None leaves it
            to the checkpoint.
    """

    train_index: ShardIndex
    val_index: ShardIndex
    positions: Positions

    def __init__(
        self,
        data: Data,
        *,
        seed: int,
        image_size: int,
        in_chans: int,
        pin_memory: bool = False,
        stages: Sequence[tuple[int, Data]] = (),
    ) -> None:
        """Keep what is needed; ``setup`` reads the index.

        Args:
            data: Settings.
            seed: The run's.
            image_size: Side in pixels of images in training, and in evaluation unless ``data`` says otherwise.
            in_chans: Channels of an image.
            pin_memory: Whether batches are copied to memory that a GPU reads by itself.
            stages: Of each stage of training but the last the epoch at which it ends, and its settings.
        """
        super().__init__()
        self.data = data
        self.seed = seed
        self.eval_image_size = data.eval_image_size or image_size
        self.stage_ends = tuple(end for end, _ in stages)
        self.in_chans = in_chans
        self.next_batch: int | None = None
        self.index_progress: Callable[[int], None] | None = None
        self._prepared = False
        self._pipelines = Pipelines(
            data,
            seed=seed,
            eval_image_size=self.eval_image_size,
            in_chans=in_chans,
            pin_memory=pin_memory,
            stages=[*((each, each.image_size or image_size) for _, each in stages), (data, image_size)],
        )
        self._stream: TrainingStream | None = None
        self._waited_s = 0.0
        self._val_loader: EvaluationLoader | None = None
        self._beside = SideStream()

    @property
    def layout(self) -> BatchLayout:
        """How the global batch lies over the ranks of this attempt."""
        assert self.trainer is not None
        return BatchLayout(
            global_batch_size=self.data.global_batch_size,
            micro_batch_size=self.data.micro_batch_size,
            world_size=self.trainer.world_size,
        )

    def prepare_data(self) -> None:
        """Make the index files, and see that they are up to date, on one process per node."""
        self._open_indexes()
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Read the index files. Servers are not asked for all shards again where ``prepare_data`` has done so.

        Raises:
            DataError: If shards are missing or damaged, or an epoch is smaller than a global batch.
        """
        # Lightning has called it before, on the first process of each node.
        self._open_indexes(vouched=self._prepared or (self.trainer is not None and self.trainer.local_rank > 0))
        order = TrainingOrder(
            self.train_index.shard_samples,
            seed=self.seed,
            global_batch_size=self.data.global_batch_size,
            num_lanes=self.data.num_lanes,
            window_shards=self.data.shuffle_window_shards,
            repeats=self.data.augmentation.aug_repeats or 1,
            passed_over=self.next_batch or 0,
        )
        self.positions = Positions(order, self.train_index, self.val_index)
        if stage == "fit":
            self._check_cache()
        if stage == "fit" and order.samples < self.data.global_batch_size:
            raise DataError(
                f"data.global_batch_size is {self.data.global_batch_size}, but there are only "
                f"{order.samples} training samples"
            )

    def train_dataloader(self) -> EpochLoader:
        """What is left of the current epoch. Lightning asks anew each epoch; the workers behind it are the same."""
        assert self.trainer is not None
        step = self.trainer.global_step
        accumulate = self.layout.accumulate_grad_batches
        if self._stream is None or self._stream.position != step * accumulate:
            self._close_stream()
            self._stream = self._open_stream(first=step * accumulate)
        end = self.order.epoch_end(self.trainer.current_epoch + 1)
        return EpochLoader(self._stream, (end - step) * accumulate)

    def val_dataloader(self) -> EvaluationLoader:
        """This rank's share of the validation split."""
        assert self.trainer is not None
        if self._val_loader is None:
            plan = EvaluationPlan(
                samples=len(self.val_index),
                batch_size=self.data.eval_batch_size,
                global_rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            )
            self._val_loader = EvaluationLoader(self._pipelines.evaluation(self.val_index, plan), plan)
        return self._val_loader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's hook: a GPU copies while it computes, and decodes the images that the workers left encoded.

        Raises:
            ConfigError: If the device decodes nothing.
            DataError: If an image is bad, and none may or can take its place.
        """
        if isinstance(batch, EncodedBatch):
            return self._pipelines.decoded(batch, device)
        whole = super().transfer_batch_to_device
        return self._beside(lambda: whole(batch, device, dataloader_idx), device)

    @property
    def waited_s(self) -> float:
        """Seconds in which the training process has waited for training batches, since it began."""
        return self._waited_s + (self._stream.waited_s if self._stream is not None else 0.0)

    @property
    def traffic(self) -> Counts:
        """What this rank's loaders have read, fetched and waited for, since it began."""
        return self._pipelines.total_traffic()

    @property
    def is_remote(self) -> bool:
        """Whether shards of either split come over the network."""
        return bool(self.train_index.shard_tags or self.val_index.shard_tags)

    @property
    def order(self) -> TrainingOrder:
        """The order of training samples, after ``setup``."""
        return self.positions.order

    def position(self, step: int) -> dict[str, int | str]:
        """Where the data stands after ``step`` optimizer steps, whatever loaders have handed out."""
        return self.positions.after(step)

    def stage(self, step: int) -> int:
        """Number of the stage of training that an optimizer step is in."""
        return bisect_right(self.stage_ends, self.order.epochs_before(step))

    def samples_seen(self, step: int) -> int:
        """Training samples of all devices in ``step`` optimizer steps, of whatever size their batches were."""
        return self.positions.samples_seen(step)

    def resume(self, saved: dict[str, int | str], step: int, *, allow_changes: bool = False) -> list[str]:
        """Go on after ``step`` optimizer steps: where the position says, or at ``next_batch``.

        Returns:
            What differs, in words.

        Raises:
            DataError: If the position names other samples than this run's, and ``allow_changes`` is not set.
        """
        self.positions, differing = self.positions.going_on(
            saved, step, next_batch=self.next_batch, allow_changes=allow_changes
        )
        return differing

    def describe(self, step: int, micro_batch: int) -> list[dict[str, Any]]:
        """The samples of a micro-batch of the global batch: number, epoch, shard, and key where it can be read.

        Of samples that are repeated also which repeat it is; their epoch is the pass over all samples.
        """
        slots = self.layout.slots(micro_batch)
        samples, epochs = self.order.batch(step, slots)
        repeats = [{"repeat": repeat} if self.order.repeats > 1 else {} for repeat in self.order.repeat(slots).tolist()]
        with closing(ShardReader(self.train_index, shard_cache(self.data))) as reader:
            return [
                {"sample": sample, "epoch": epoch, **repeat, "shard": self._shard(sample), "key": _key(reader, sample)}
                for sample, epoch, repeat in zip(samples.tolist(), epochs.tolist(), repeats, strict=True)
            ]

    def teardown(self, stage: str) -> None:
        """End the loaders' worker processes."""
        self._close_stream()
        if self._val_loader is not None:
            self._val_loader.close()
            self._val_loader = None

    def _shard(self, sample: int) -> str:
        return str(self.train_index.shards[self.train_index.shard_of(sample)])

    def _open_indexes(self, *, vouched: bool = False) -> None:
        self.train_index = self._open_index(self.data.train_shards, vouched=vouched)
        self.val_index = self._open_index(self.data.val_shards, vouched=vouched)

    def _open_index(self, shards: str | tuple[str, ...], *, vouched: bool) -> ShardIndex:
        cache = shard_cache(self.data)
        found = find_shards(shards, cache.remote)
        index = open_split(
            found,
            cache=cache,
            index_dir=self.data.index_dir,
            vouched=vouched,
            progress=self.index_progress,
            modality=self.data.modality,
        )
        if int(index.labels.min()) < 0 or int(index.labels.max()) >= self.data.num_classes:
            raise DataError(
                f"labels of {index.shards[0]} and the shards beside it go from {index.labels.min()} to "
                f"{index.labels.max()}, but data.num_classes is {self.data.num_classes} (-1: a sample without a label)"
            )
        return index

    def _check_cache(self) -> None:
        """Refuse a cache too small for what a node shuffles at once: each shard would come over and over again."""
        assert self.trainer is not None
        if not self.train_index.shard_tags:
            return
        lanes = -(-self.data.num_lanes // self.trainer.num_nodes)
        shards = min(lanes * self.data.shuffle_window_shards, len(self.train_index.shards))
        needed = sum(sorted(self.train_index.shard_bytes.tolist())[-shards:])
        if needed > self.data.cache_bytes:
            raise DataError(
                f"data.cache_bytes is {self.data.cache_bytes:,}, but a node reads {shards} shards at once "
                f"(data.num_lanes, data.shuffle_window_shards): at least {needed:,} are needed"
            )

    def _open_stream(self, *, first: int) -> TrainingStream:
        assert self.trainer is not None
        plan = TrainingPlan(self.order, self.layout, self.trainer.global_rank, self.stage_ends)
        plan.batch(first)  # computes the epoch's order, which the workers then share
        return TrainingStream(self._pipelines.training(self.train_index, plan, first=first), first=first)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._waited_s += self._stream.waited_s
            self._stream.close()
            self._stream = None


def _key(reader: ShardReader, sample: int) -> str | None:
    try:
        return reader.key(sample)
    except (DataError, UnreachableError):
        return None
