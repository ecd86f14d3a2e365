"""Loggers: metrics.csv always, Weights & Biases where wanted. Neither can stop a run."""

import csv
import os
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from configs.run import RunDirectory
from configs.schema import Config
from trainer.logs import logger


class _GoesOn(ExperimentWriter):
    """Goes on with the rows of earlier attempts up to a step, where Lightning's writer deletes them."""

    def __init__(self, log_dir: str, *, keep_until_step: int) -> None:
        self._keep_until_step = keep_until_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        if not os.path.isfile(self.metrics_file_path):
            return
        with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self._keep_until_step]
        self.metrics_keys = list(rows[0]) if rows else []
        os.remove(self.metrics_file_path)
        if rows:
            self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with open(self.metrics_file_path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class MetricsCsv(CSVLogger):
    """``metrics.csv`` of a run: one file over all attempts, a row a step, no step twice."""

    def __init__(self, run: RunDirectory, *, resumed_step: int) -> None:
        super().__init__(save_dir=run.path.parent, name=run.run_id, version="", flush_logs_every_n_steps=1)
        self._resumed_step = resumed_step

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The writer; made when the first row comes."""
        if self._experiment is None:
            self._experiment = _GoesOn(log_dir=self.log_dir, keep_until_step=self._resumed_step)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: config.yaml holds them."""


class SafeWandbLogger(WandbLogger):
    """W&B that cannot hurt: an error of the client is said once, and training goes on without it.

    The client raises from ``init`` when the server is away and from ``log`` when its service process is gone
    (https://github.com/wandb/wandb/issues/4482, https://github.com/Lightning-AI/pytorch-lightning/issues/11380).
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.dead = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row, unless W&B has failed before."""
        self._guard(lambda: super(SafeWandbLogger, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Set the run's config, unless W&B has failed before."""
        self._guard(lambda: super(SafeWandbLogger, self).log_hyperparams(params))

    def finish(self, exit_code: int) -> None:
        """End this attempt's part of the run."""
        self._guard(lambda: self.experiment.finish(exit_code=exit_code))

    def _guard(self, call: Callable[[], Any]) -> None:
        if self.dead:
            return
        try:
            call()
        except Exception as error:  # whatever W&B raises, training is worth more
            self.dead = True
            logger.warning("W&B failed and is off for this attempt (metrics.csv goes on): %s", error)


def build_loggers(config: Config, run: RunDirectory, *, resumed_step: int) -> list[Logger]:
    """The loggers of rank 0; others get loggers that do nothing."""
    loggers: list[Logger] = [MetricsCsv(run, resumed_step=resumed_step)]
    if config.tracking.mode != "disabled":
        loggers.append(
            SafeWandbLogger(
                name=run.run_id,
                id=run.wandb_id(),
                resume="allow",
                project=config.tracking.project,
                entity=config.tracking.entity,
                tags=list(config.tracking.tags),
                save_dir=run.path,
                offline=config.tracking.mode == "offline",
            )
        )
    return loggers
