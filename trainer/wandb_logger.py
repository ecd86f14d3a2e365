"""W&B that cannot hurt: where it fails, training goes on, and says once where the rows are and how to send them."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.run import RunDirectory
from trainer.logs import logger
from trainer.wandb_client import UnbrokenWandbLogger, first_line


def sync_command(run: RunDirectory) -> str:
    """What sends all that W&B has not got, of every attempt of a run. Attempts that have sent all are passed over."""
    folders = f"{shlex.quote(str(run.wandb_dir))}/*run-*"
    # One at a time: where the file of an attempt has no end, as after kill -9, wandb leaves out all that come after it.
    return f'for each in {folders}; do wandb sync --include-online "$each"; done'


class SafeWandbLogger(UnbrokenWandbLogger):
    """W&B whose errors are said once, and nothing more.

    The client raises from ``init`` when the server is away and from ``log`` when its service process is gone
    (https://github.com/wandb/wandb/issues/4482, https://github.com/Lightning-AI/pytorch-lightning/issues/11380).
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row, unless W&B has failed before."""
        row = dict(metrics)
        if self._offline and not self._has_room():
            self._later.append((step, lambda: self._log_row(row, step)))
        else:
            self._guard(lambda: self._log_row(row, step), step)

    def log_hyperparams(self, params: Any) -> None:
        """Set the run's config, unless W&B has failed before."""
        self._guard(lambda: super(SafeWandbLogger, self).log_hyperparams(params))

    @property
    def url(self) -> str | None:
        """The page of the run, without credentials that a proxy's address may have; None where it has none."""
        run = self._experiment
        if self.dead or self._offline or run is None:
            return None
        found = urlsplit(str(run.url or ""))
        return found._replace(netloc=found.netloc.rpartition("@")[2]).geturl() or None

    def log_artifact(self, artifact: Any, aliases: list[str]) -> Any:
        """Begin to send files; returns what can be waited for, or None where W&B is off. Not for training's thread.

        Raises:
            Exception: Whatever W&B has raised.
        """
        if self._beginner is not None:
            self._beginner.join()
        if self.dead or self._experiment is None:
            return None
        try:
            return self._experiment.log_artifact(artifact, aliases=aliases)
        except ConnectionError as error:
            self._begin_again(error)
            raise

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

    def _try(self, what: str, call: Callable[[], Any]) -> None:
        """What W&B may refuse and still take rows."""

        def tried() -> None:
            try:
                call()
            except ConnectionError:
                raise
            except Exception as error:
                logger.warning("W&B has not taken %s: %s", what, first_line(error))

        self._guard(tried)
