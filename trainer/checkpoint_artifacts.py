"""Checkpoints in W&B, as versions of one artifact: which, by what names, in a thread that training never waits for."""

import queue
import shlex
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger

from configs.run import RunDirectory
from configs.schema import Config
from datamodules.inspecting.shards import IMPATIENT, names_of_classes
from trainer import artifact_snapshots
from trainer.artifact_snapshots import Snapshot
from trainer.checkpoint_files import is_step_name, metric, step_of
from trainer.logs import logger
from trainer.remote_checkpoints import RemoteCheckpoints
from trainer.retention import Kept, Retention
from trainer.saver import reason
from trainer.signals import StopFlag
from trainer.wandb_logger import SafeWandbLogger

HANDOVER_TIMEOUT_S = 20.0
"""Longest wait, when an attempt ends, until W&B's service has been told of the last checkpoint; the checksums that it
wants take 1.3 s a GB. Then the service has as long as for rows."""
TRIES, PAUSE_S = 3, 10.0
"""To send a checkpoint in an attempt, and between two of them. The next attempt tries again."""


class CheckpointArtifacts:
    """Lives on rank 0. Its errors are said once, and nothing more."""

    def __init__(self, config: Config, run: RunDirectory, tracker: SafeWandbLogger, flag: StopFlag) -> None:
        self._config = config
        self._run = run
        self._tracker = tracker
        self._flag = flag
        self._policy = config.tracking.checkpoint_artifacts
        self._remote = RemoteCheckpoints.of(config, run.run_id)
        self._name = f"model-{run.wandb_id()}"
        self._folder = run.wandb_dir / "checkpoints"
        self._failed = False
        self._queue: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: Snapshot | None = None
        self._closing, self._handed_over = threading.Event(), threading.Event()
        self._uploads: list[threading.Thread] = []
        self._tries: Counter[Path] = Counter()
        self._parameters = 0

    @classmethod
    def of(
        cls, config: Config, run: RunDirectory, loggers: Sequence[Logger], flag: StopFlag
    ) -> "CheckpointArtifacts | None":
        """None where no checkpoint is to go to W&B."""
        trackers = [each for each in loggers if isinstance(each, SafeWandbLogger)]
        if not trackers or config.tracking.checkpoint_artifacts == "none":
            return None
        return cls(config, run, trackers[0], flag)

    def begin(self, network: torch.nn.Module) -> None:
        """W&B is begun, or kept on disk; the network is whole still. Send first what earlier attempts could not."""
        self._parameters = sum(parameter.numel() for parameter in network.parameters())
        threading.Thread(target=self._work, name="artifacts", daemon=True).start()

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is where it should be. Called in the thread that saves, before that can remove it.

        One that is saved at a signal waits for the next attempt, which begins with it: the job has seconds.
        """
        if self._policy == "all" and not self._tracker.is_offline and self._flag.received is None:
            self._offer(checkpoint, best=checkpoint == self._best())

    def trained(self) -> None:
        """Training is done: what is best is known."""
        checkpoints, best = self._checkpoints(), self._best()
        wanted: dict[str, list[Path | None]] = {
            "best": [best],
            "last": [*checkpoints[-1:]],
            "best_and_last": [best, *checkpoints[-1:]],
            "all": [*checkpoints] if self._tracker.is_offline else [],
        }
        for checkpoint in sorted({path for path in wanted[self._policy] if path is not None}, key=step_of):
            self._offer(checkpoint, best=checkpoint == best, leave_out=False)

    def close(self, *, wait: bool) -> None:
        """The attempt ends. With ``wait``, until W&B's service has been told of all; it sends them while it ends."""
        self._closing.set()
        self._queue.put(None)
        if wait:
            self._handed_over.wait(HANDOVER_TIMEOUT_S)

    def ended(self, *, done: bool) -> None:
        """W&B has ended: what it has need not be kept. Of a run that is ``done``, say what it lacks."""
        until = time.monotonic() + 1.0
        for thread in self._uploads:
            thread.join(max(until - time.monotonic(), 0.0))
        missing = [each for each in artifact_snapshots.left(self._folder) if not each.offline] if done else []
        if missing:
            text = "W&B may lack the checkpoint of %s, until it is sent by: %s"
            logger.warning(text, missing[-1].path.name, self._command(missing[-1]))

    def _command(self, snapshot: Snapshot) -> str:
        """What sends a checkpoint. What the server has of it, it is not sent again."""
        if self._remote is not None:
            return "the next attempt"
        about = ["--type", "model", "--name", f"{self._config.tracking.project}/{self._name}"]
        aliases = [word for alias in snapshot.aliases for word in ("--alias", alias)]
        where = ["--id", self._run.wandb_id(), "--policy", "immutable", "--skip_cache", str(snapshot.path)]
        return shlex.join(["wandb", "artifact", "put", *about, *aliases, *where])

    def _offer(self, checkpoint: Path, *, best: bool, leave_out: bool = True) -> None:
        if artifact_snapshots.has(self._folder, checkpoint):
            return  # an attempt before has left it, and it is being sent
        try:
            snapshot = artifact_snapshots.take(
                self._folder,
                checkpoint,
                aliases=["latest", *(["best"] if best else []), checkpoint.name],
                offline=self._tracker.is_offline,
                card=artifact_snapshots.card_of(
                    self._run, self._config, checkpoint, parameters=self._parameters, classes=self._classes
                ),
                with_files=self._remote is None,
            )
        except Exception as error:  # no checkpoint is worth less for it
            self._say("W&B does not get checkpoint %s: %s", checkpoint.name, reason(error))
            return
        with self._lock:
            passed_over, self._waiting = (self._waiting if leave_out else None), snapshot
        if passed_over is not None:
            self._say("W&B takes checkpoints slower than they are saved: %s is left out", passed_over.path.name)
            passed_over.remove()
        self._queue.put(snapshot)

    def _work(self) -> None:
        for earlier in artifact_snapshots.left(self._folder):
            if not earlier.offline and not self._tracker.is_offline:
                self._hand_over(earlier)
        while (snapshot := self._queue.get()) is not None:
            with self._lock:
                self._waiting = None if self._waiting is snapshot else self._waiting
            if snapshot.path.exists():
                self._hand_over(snapshot)
        self._handed_over.set()

    def _hand_over(self, snapshot: Snapshot) -> None:
        """Tell W&B's service of a checkpoint, and wait until it has sent it, unless the attempt ends."""
        try:
            logged = self._tracker.log_artifact(self._artifact(snapshot), list(snapshot.aliases))
        except Exception as error:
            self._try_again(snapshot, error)
            return
        if logged is None or self._tracker.is_offline:
            return
        upload = threading.Thread(target=self._wait, args=(logged, snapshot), name="artifact", daemon=True)
        upload.start()
        self._uploads = [*(each for each in self._uploads if each.is_alive()), upload]
        while upload.is_alive() and not self._closing.is_set():
            upload.join(0.1)

    def _wait(self, logged: Any, snapshot: Snapshot) -> None:
        try:
            logged.wait()
        except Exception as error:
            self._try_again(snapshot, error)
        else:
            snapshot.remove()

    def _try_again(self, snapshot: Snapshot, error: Exception) -> None:
        """W&B's service may have ended, and be begun again soon."""
        self._tries[snapshot.path] += 1
        if self._tries[snapshot.path] < TRIES and not self._closing.wait(PAUSE_S):
            self._queue.put(snapshot)
        else:
            self._say("W&B has not taken checkpoint %s: %s", snapshot.path.name, reason(error))

    def _artifact(self, snapshot: Snapshot) -> Any:
        import wandb
        from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

        about = f"Checkpoints of {self._run.run_id}"
        artifact = wandb.Artifact(self._name, "model", description=about, metadata=snapshot.metadata)
        for file, path in snapshot.files.items():
            artifact.add_file(str(path), name=file, policy="immutable", skip_cache=True)
        if self._remote is not None:
            step = step_of(snapshot.path)
            for file, expected in snapshot.manifest["files"].items():
                # Not by add_reference, which asks the store by clients of its own (boto3) with settings of their own.
                url, etag = self._remote.reference(step, file)
                digest, extra = etag or expected["sha256"], {"etag": etag} if etag else {}
                entry = ArtifactManifestEntry(path=file, ref=url, digest=digest, size=expected["bytes"], extra=extra)
                artifact.manifest.add_entry(entry)
        return artifact

    @cached_property
    def _classes(self) -> list[str] | None:
        """Their names. Asked for once: the next save, and a signal's, wait behind it."""
        return names_of_classes(self._config.data.model_copy(update=IMPATIENT))

    def _checkpoints(self) -> list[Path]:
        """The run's, the oldest first."""
        return sorted(filter(is_step_name, self._run.checkpoints.glob("step-*")), key=step_of)

    def _best(self) -> Path | None:
        """Of those that are on disk; None if none was validated."""
        monitor, found = self._config.monitor, {step_of(path): path for path in self._checkpoints()}
        step = Retention(last=1, monitor=monitor).best_of(
            [Kept(step, metric(path, monitor)) for step, path in found.items()]
        )
        return None if step is None else found[step]

    def _say(self, text: str, *values: object) -> None:
        """Once an attempt: the next checkpoint would fare the same."""
        if not self._failed:
            self._failed = True
            logger.warning(text, *values)
