"""W&B that cannot hurt: where it fails, training goes on, and says once where the rows are and how to send them."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import _DummyExperiment
from pytorch_lightning.loggers import WandbLogger

from configs.run import RunDirectory
from trainer.logs import logger

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 15.0, 60.0
"""Longest waits for a server that is away, when an attempt begins (the client adds 10 s) and when it ends. W&B's own
are 90 s, and for ever. Rows that were not sent stay on disk."""
AXES = ("samples_seen", "epoch", "attempt")
"""Of all charts, beside ``trainer/global_step``, which Lightning defines."""


def sync_command(run: RunDirectory) -> str:
    """What sends all that W&B has not got, of every attempt of a run. What it has got it does not get twice."""
    return f"wandb sync --include-online {shlex.quote(str(run.wandb_dir))}/*run-*"


class SafeWandbLogger(WandbLogger):
    """W&B whose errors are said once, and nothing more.

    The client raises from ``init`` when the server is away and from ``log`` when its service process is gone
    (https://github.com/wandb/wandb/issues/4482, https://github.com/Lightning-AI/pytorch-lightning/issues/11380).

    Attributes:
        dead: Whether this attempt has no W&B any more.
    """

    def __init__(self, *, sync: str = "wandb sync", **arguments: Any) -> None:
        """Begin nothing yet.

        Args:
            sync: The command that sends later what could not be sent.
            arguments: WandbLogger's.
        """
        super().__init__(**arguments)
        self.dead = False
        self._sync = sync

    @property
    def experiment(self) -> Any:
        """W&B's run, begun when first asked for, which Lightning does too.

        If that fails, one that is kept on disk; and if that does too, one that does nothing.
        """
        if not self.dead:
            try:
                return self._begun()
            except Exception as error:  # whatever W&B raises, training is worth more
                if not self._offline and self._begins_offline(error):
                    return self._experiment
                self._give_up(error)
        return _DummyExperiment()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row, unless W&B has failed before."""
        self._guard(lambda: super(SafeWandbLogger, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Set the run's config, unless W&B has failed before."""
        self._guard(lambda: super(SafeWandbLogger, self).log_hyperparams(params))

    def log_page(self, key: str, page: str, step: int) -> None:
        """Show HTML."""
        import wandb

        self._try(key, lambda: self.experiment.log({key: wandb.Html(page, inject=False), "trainer/global_step": step}))

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """Show an image."""
        import wandb

        self._try(key, lambda: self.experiment.log({key: wandb.Image(str(file)), "trainer/global_step": step}))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set values that hold for the whole run."""
        self._try("summary", lambda: self.experiment.summary.update(dict(values)))

    def keep_file(self, file: Path) -> None:
        """Send a file as it is now."""
        self._try(file.name, lambda: self.experiment.save(str(file), base_path=str(file.parent), policy="now"))

    def alert(self, title: str, text: str) -> None:
        """Tell whoever has asked W&B to be told."""
        self._try("alert", lambda: self.experiment.alert(title=title, text=text))

    def mark_preempting(self) -> None:
        """Have W&B call the run preempted, not failed."""
        self._try("preemption", lambda: self.experiment.mark_preempting())

    def finish(self, exit_code: int) -> None:
        """End this attempt's part of the run."""
        try:
            if not self.dead:
                self.experiment.finish(exit_code=exit_code)
        except TimeoutError:
            text = "W&B has not taken all rows in %.0f s: they are on disk, and to be sent by: %s"
            logger.warning(text, FINISH_TIMEOUT_S, self._sync)
        except Exception as error:
            self._give_up(error)

    def _begun(self) -> Any:
        new = self._experiment is None
        experiment = super().experiment
        if new and self._experiment is not None:
            for axis in AXES:
                experiment.define_metric(axis)
        return experiment

    def _begins_offline(self, error: Exception) -> bool:
        """Where W&B cannot be reached, or refuses: keep what it would have got."""
        import wandb

        with suppress(Exception, SystemExit):  # its service believes that the run is begun
            wandb.teardown()
        self._offline, self._experiment = True, None
        self._wandb_init |= {"mode": "offline"}
        self._wandb_init["settings"] = wandb.Settings(finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True)
        try:
            self._begun()
        except Exception as second:
            self._give_up(second)
            return False
        text = "W&B cannot be reached: this attempt is kept on disk, and to be sent by: %s (%s)"
        logger.warning(text, self._sync, _first_line(error))
        return True

    def _guard(self, call: Callable[[], Any]) -> None:
        if self.dead:
            return
        try:
            call()
        except Exception as error:
            self._give_up(error)

    def _try(self, what: str, call: Callable[[], Any]) -> None:
        """What W&B may refuse and still take rows."""
        try:
            if not self.dead:
                call()
        except Exception as error:
            logger.warning("W&B has not taken %s: %s", what, _first_line(error))

    def _give_up(self, error: Exception) -> None:
        if not self.dead:
            self.dead = True
            text = "W&B failed and is off for this attempt (metrics.csv goes on); what it has is to be sent by: %s (%s)"
            logger.warning(text, self._sync, _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
