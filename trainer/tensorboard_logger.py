"""TensorBoard's files of a run, in ``tensorboard/`` of its directory. They cannot stop it either."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from configs.problems import ConfigError, Problem
from configs.run import RunDirectory
from trainer.logs import logger

FOLDER = "tensorboard"


class SafeTensorBoardLogger(TensorBoardLogger):
    """TensorBoard whose first error is said, and the last: a full disk ends its writer's thread."""

    def __init__(self, run: RunDirectory, *, resumed_step: int) -> None:
        """Begin nothing yet.

        Raises:
            ConfigError: If TensorBoard is not installed.
        """
        try:
            import tensorboard  # noqa: F401 - Lightning would take tensorboardX too, which blocks on a full disk
        except ImportError:
            accepted = "false: tensorboard is not installed (pip install 'effnet[tensorboard]')"
            raise ConfigError([Problem(key="tracking.tensorboard", received="true", accepted=accepted)]) from None
        # Rows of steps that come again take the place of those that were there.
        super().__init__(run.path, name="", version=FOLDER, purge_step=resumed_step + 1, flush_secs=10)
        self.dead = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row, unless TensorBoard has failed before."""
        if not self.dead:
            try:
                super().log_metrics(metrics, step)
            except Exception as error:
                self._give_up(error)

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """Show an image, unless TensorBoard has failed before."""
        if not self.dead:
            try:
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))
                self.experiment.add_image(key, pixels, step, dataformats="HWC")
            except Exception as error:
                self._give_up(error)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: config.yaml holds them."""

    def save(self) -> None:
        """Flush, unless TensorBoard has failed before."""
        if not self.dead:
            try:
                self.experiment.flush()
            except Exception as error:
                self._give_up(error)

    def finalize(self, status: str) -> None:
        """Close the file."""
        self.save()
        if not self.dead:
            self.experiment.close()

    def _give_up(self, error: Exception) -> None:
        self.dead = True
        logger.warning("TensorBoard failed and is off for this attempt (metrics.csv goes on): %s", error)
