"""``metrics.csv``: one file over all attempts of a run, each row on disk as soon as it is logged, no step twice."""

import csv
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from configs.files import write_atomically
from configs.run import RunDirectory
from trainer.logs import logger


class _GoesOn(ExperimentWriter):
    """Goes on with the rows of earlier attempts up to a step, where Lightning's writer deletes them."""

    def __init__(self, log_dir: str, *, keep_until_step: int, validated: bool) -> None:
        self._keep_until_step = keep_until_step
        self._validated = validated
        self._failed = False
        self._whole: tuple[int, list[str]] = (0, [])
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        if not os.path.isfile(self.metrics_file_path):
            return
        with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
            # What follows the last line end is a row that was cut off by the end of its process.
            whole = file.read().rpartition("\n")[0]
        rows = [row for row in csv.DictReader(io.StringIO(whole)) if self._kept(row)]
        self.metrics_keys = list(rows[0]) if rows else []
        if rows:
            self._write(rows)
        else:
            os.remove(self.metrics_file_path)

    def save(self) -> None:
        """Append the rows that there are; those for which the disk has no room now come with the next ones."""
        file, rows = Path(self.metrics_file_path), list(self.metrics)
        self._whole = (file.stat().st_size if file.exists() else 0, list(self.metrics_keys))
        try:
            super().save()
        except OSError as error:
            if not self._failed:
                logger.warning("%s cannot be written, its rows are kept until it can be: %s", file, error)
            self._failed, self.metrics = True, rows
            size, self.metrics_keys = self._whole
            with suppress(OSError):  # no half row, which the next one would follow
                os.truncate(file, size) if size else file.unlink(missing_ok=True)
        else:
            self._failed = False

    def _kept(self, row: dict[str, Any]) -> bool:
        step = row.get("step") or ""
        if not step.isdecimal() or int(step) > self._keep_until_step:
            return False
        # That checkpoint's validation is to come, though an attempt may have done it and ended before it saved again.
        repeated = int(step) == self._keep_until_step and not self._validated
        return not (repeated and any(value for key, value in row.items() if str(key).startswith("val/")))

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
            self._write(list(csv.DictReader(file)))
        self._whole = (os.path.getsize(self.metrics_file_path), list(fieldnames))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file at once: Lightning empties it first, and a process may end there."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(Path(self.metrics_file_path), text.getvalue())


class MetricsCsv(CSVLogger):
    """``metrics.csv`` of a run: one file over all attempts, a row a step, no step twice."""

    def __init__(self, run: RunDirectory, *, resumed_step: int, validated: bool = True) -> None:
        super().__init__(save_dir=run.path.parent, name=run.run_id, version="", flush_logs_every_n_steps=1)
        self._resumed_step, self._validated = resumed_step, validated

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The writer; made when the first row comes."""
        if self._experiment is None:
            self._experiment = _GoesOn(
                log_dir=self.log_dir, keep_until_step=self._resumed_step, validated=self._validated
            )
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: config.yaml holds them."""
