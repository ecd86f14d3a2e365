"""What a run's last validation has found, sample by sample: kept when it is over, told when the run is done.

Between the two lies the run's last checkpoint. What comes before it is short and needs no server; what may take time
comes after it, when nothing can be lost any more.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer

from configs.files import write_atomically
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.indexing.splits import shard_cache
from datamodules.streaming.transforms import shown_share
from trainer.checkpoints import CheckpointDirectory
from trainer.evaluation.extremes import Examples
from trainer.evaluation.samples import WEIGHTS, Outputs, SampleTable
from trainer.logs import logger

TRIES = 2
"""Times that outputs are made into figures, where a run is killed while it does so: it may be what killed it."""
MOST_CLASSES = 5_000
"""Classes up to which a run tells of each: a confusion matrix of more takes more than 200 MB of memory."""
MOST_SAMPLES = 2_000_000
"""Samples up to which there is a row for each: 144 MB on every device, twice that with averaged weights."""


class FinalValidation(Callback):
    """Writes what ``effnet validate`` would, from the validation at a run's last step. It cannot stop the run."""

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._config = config
        self._run = run
        self._table: SampleTable | None = None
        self._failed = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the table of samples, if no step follows."""
        self._table, self._failed = None, False
        samples = len(trainer.datamodule.val_index)  # type: ignore[attr-defined]
        if trainer.state.fn == "fit" and self._is_wanted and samples <= MOST_SAMPLES and self._is_last(trainer):
            self._table = SampleTable(examples=self._config.tracking.examples or 0)
            self._table.on_validation_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put a batch's rows in."""
        if self._table is None or self._failed:
            return
        try:
            self._table.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        except Exception as error:  # the run's checkpoint is worth more
            self._failed = True
            _say(error)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the ranks, and keep it on disk."""
        if self._table is None:
            return
        self._table.reduce(trainer)  # on all ranks, whatever has failed on one
        try:
            self._table.conclude(trainer)
            if trainer.is_global_zero:
                self._keep(trainer, self._table)
        except Exception as error:
            _say(error)
        self._table = None

    def tell(self, trainer: Trainer) -> None:
        """Once the run is done, write and log what was kept, also by an attempt before. On rank 0."""
        if not self._is_wanted or not trainer.is_global_zero:
            return
        try:
            file = self._next_try()
            if file is not None:
                self._tell(trainer, file)
                file.unlink()
        except Exception as error:
            _say(error)

    @property
    def _is_wanted(self) -> bool:
        return self._config.tracking.examples is not None and self._config.data.num_classes <= MOST_CLASSES

    def _is_last(self, trainer: Trainer) -> bool:
        settings = self._config.trainer
        total = trainer.datamodule.order.epoch_end(settings.max_epochs)  # type: ignore[attr-defined]
        return bool(trainer.global_step >= min(total, settings.max_steps or total))

    def _file(self, tried: int) -> Path:
        return self._run.path / "validation" / f"outputs-{tried}.npz"

    def _keep(self, trainer: Trainer, table: SampleTable) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        arrays: dict[str, Any] = {
            "step": trainer.global_step,
            "index_hash": datamodule.val_index.digest,
            "image_size": datamodule.eval_image_size,
            "crop_pct": shown_share(datamodule.data),
            "devices": trainer.world_size,
        }
        for prefix, outputs in table.outputs.items():
            for name in ("ranked", "confidences", "losses"):
                arrays[f"{WEIGHTS[prefix]}/{name}"] = getattr(outputs, name)
            for kind, examples in table.examples.get(prefix, {}).items():
                arrays |= {f"{WEIGHTS[prefix]}/{kind}/{name}": each for name, each in examples._asdict().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self._file(0).parent.mkdir(exist_ok=True)
        for tried in range(1, TRIES + 1):
            self._file(tried).unlink(missing_ok=True)
        write_atomically(self._file(0), buffer.getvalue())

    def _next_try(self) -> Path | None:
        """The outputs that are kept, under the name of one more try; None where there are none, or they were tried."""
        for tried in range(TRIES):
            if self._file(tried).exists():
                return self._file(tried).replace(self._file(tried + 1))
        self._file(TRIES).unlink(missing_ok=True)
        return None

    def _tell(self, trainer: Trainer, file: Path) -> None:
        from datamodules.inspecting.shards import IMPATIENT, names_of_classes
        from trainer.evaluation.figures import figures
        from trainer.evaluation.pictures import described
        from trainer.evaluation.results import Evaluation, Result, Setting, write
        from trainer.evaluation.telling import tell

        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        index, data = datamodule.val_index, self._config.data.model_copy(update=IMPATIENT)
        with np.load(file) as arrays:
            kept: dict[str, Any] = dict(arrays)
        step = int(kept["step"])
        if (step, str(kept["index_hash"])) != (trainer.global_step, index.digest):
            return
        results = []
        for weights in WEIGHTS.values():
            if f"{weights}/losses" in kept:
                of_weights = {
                    key.partition("/")[2]: each for key, each in kept.items() if key.startswith(f"{weights}/")
                }
                outputs = Outputs(index.labels, *(of_weights[name] for name in ("ranked", "confidences", "losses")))
                examples = {
                    kind: Examples(*(of_weights[f"{kind}/{name}"] for name in Examples._fields))
                    for kind in dict.fromkeys(key.partition("/")[0] for key in of_weights if "/" in key)
                }
                setting = Setting(int(kept["image_size"]), float(kept["crop_pct"]), weights)
                found = figures(outputs, num_classes=data.num_classes)
                results.append(Result(setting, found, described(examples, outputs, index, shard_cache(data))))
        evaluation = Evaluation(
            subject=self._run.run_id,
            checkpoint=str(CheckpointDirectory(self._run.checkpoints).named(step)),
            step=step,
            shards=tuple(map(str, index.shards)),
            index_hash=index.digest,
            num_classes=data.num_classes,
            class_names=names_of_classes(data),
            devices=int(kept["devices"]),
            results=tuple(results),
        )
        write(evaluation, self._run.path)
        tell(trainer.loggers, evaluation, self._run.path, step=step)


def _say(error: Exception) -> None:
    text = (
        "what the last validation has found of each class and sample is not kept: %s (effnet validate finds it again)"
    )
    logger.warning(text, f"{type(error).__name__}: {error}")
