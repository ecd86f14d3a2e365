"""A trace of a few training steps: what the host, the device and the network between ranks did, and when."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from configs.run import RunDirectory
from configs.schema import Config
from trainer.logs import logger
from trainer.module import EfficientNetModule


class StepTrace(Callback):
    """Writes ``traces/attempt-00-steps-3-5.json.gz`` to the run directory, for https://ui.perfetto.dev. For rank 0.

    A trace that cannot be written is said so and left out; training goes on.
    """

    def __init__(self, config: Config, run: RunDirectory, *, attempt: int) -> None:
        assert config.trainer.profile_steps is not None
        self._first, self._last = config.trainer.profile_steps
        self._folder = run.path / "traces"
        self._attempt = attempt
        self._profile: profile | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin with the first step, or where this attempt begins between first and last."""
        step = trainer.global_step + 1
        begins = batch_idx % trainer.accumulate_grad_batches == 0
        if self._profile is None and begins and self._first <= step <= self._last:
            self._first = step
            devices = [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *devices], record_shapes=True)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End after the last step, and write."""
        assert isinstance(pl_module, EfficientNetModule)
        if self._profile is not None and pl_module.ends_step(batch_idx) and trainer.global_step >= self._last:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self._write(self._stopped())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training may have fewer steps."""
        self._stopped()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Collect no further."""
        self._stopped()

    def _stopped(self) -> profile | None:
        running, self._profile = self._profile, None
        if running is not None:
            running.stop()
        return running

    def _write(self, done: profile | None) -> None:
        assert done is not None
        name = f"attempt-{self._attempt:02d}-steps-{self._first}-{self._last}.json.gz"
        part = self._folder / f"part-{name}"
        try:
            self._folder.mkdir(exist_ok=True)
            done.export_chrome_trace(str(part))
            part.replace(self._folder / name)
        except (OSError, RuntimeError) as error:
            logger.warning("the trace of steps %d to %d was not written: %s", self._first, self._last, error)
        else:
            logger.info("trace of steps %d to %d: %s", self._first, self._last, self._folder / name)
