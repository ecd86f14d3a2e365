"""Bringing a run's newest remote checkpoint here before one is picked, and what the run knows of having gone back."""

import json
import random
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from configs.changes import changes, refusals
from configs.files import read_json, write_atomically
from configs.problems import ConfigError, Problem, UnreachableError
from configs.run import RunDirectory, config_hash
from configs.schema import Config
from datamodules.bars import Bar, no_bar
from trainer.checkpoint_files import MANIFEST, step_of
from trainer.checkpoints import CheckpointDirectory
from trainer.logs import logger
from trainer.remote_checkpoints import RemoteCheckpoints
from trainer.rollback import Rollbacks

ATTEMPTS, FIRST_PAUSE_S = 5, 1.0
_LASTING = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""botocore's, which is not here without the s3 extra."""
_RANDOM = random.SystemRandom()
"""Not Python's global generator, from which training draws."""
Value = TypeVar("Value")


def fetch_newest(config: Config, run: RunDirectory, *, is_first: bool = True, bar: Bar = no_bar) -> None:
    """Bring a run's newest remote checkpoint here, if it is newer than all that verify here.

    For rank 0, before a checkpoint is picked; the others must wait for it. What is damaged there is passed over.

    Args:
        config: Of the attempt.
        run: Where to.
        is_first: Whether this is the run's first attempt here: what is there, then, is not its own.
        bar: To show on how far it is.

    Raises:
        ConfigError: If the folder cannot be written, holds another experiment, or is not empty with ``resume=never``.
        UnreachableError: If the server does not answer: without it, a run might begin anew that has begun elsewhere.
    """
    remote = RemoteCheckpoints.of(config, run.run_id)
    if remote is None:
        return
    _asked(remote, remote.check)
    steps = _asked(remote, remote.steps)
    if steps and is_first and config.resume.checkpoint == "never":
        accepted = f"auto, or another run_id: {remote.named(steps[0])} exists"
        raise ConfigError([Problem(key="resume.checkpoint", received="never", accepted=accepted)])
    share_rollbacks(config, run)
    directory, rollbacks = CheckpointDirectory(run.checkpoints), Rollbacks.read(run.rollbacks_file)
    wanted = config.resume.checkpoint

    def counts(manifest: dict[str, Any]) -> bool:
        """Whether this attempt might begin there, settings aside."""
        return rollbacks.admits(manifest) and wanted in ("auto", "never", manifest.get("resume"))

    here = next((path for path in directory.verified() if counts(read_json(path / MANIFEST))), None)
    for step in steps:
        if here is not None and step <= step_of(here):
            return
        manifest = _asked(remote, partial(remote.manifest, step)) or {}
        if manifest and not counts(manifest | {"step": step}):
            continue
        if not _goes_on(manifest, config, run):
            accepted = f"another folder, or another run_id: {remote.named(step)} is of another experiment"
            raise ConfigError([Problem(key="checkpoint.remote_dir", received=remote.url, accepted=accepted)])
        logger.info("fetching %s", remote.named(step))
        if _asked(remote, partial(remote.download, step, directory, bar=bar)) is not None:
            if here is None:
                _adopt_wandb_id(run, manifest)
            return


def share_rollbacks(config: Config, run: RunDirectory) -> None:
    """Let a run's directory and its remote folder know alike how it went back: the longer record is the later one.

    Raises:
        ConfigError: If the folder cannot be read or written.
        UnreachableError: If the server does not answer.
    """
    remote = RemoteCheckpoints.of(config, run.run_id)
    if remote is None:
        return
    file, here = run.rollbacks_file, Rollbacks.read(run.rollbacks_file).records
    text = _asked(remote, partial(remote.read, file.name))
    there = json.loads(text)["rollbacks"] if text is not None else []
    if len(there) > len(here):
        assert text is not None
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    elif len(here) > len(there):
        _asked(remote, partial(remote.write, file.name, file.read_text(encoding="utf-8")))


def _goes_on(manifest: dict[str, Any], config: Config, run: RunDirectory) -> bool:
    """Whether a run may go on from a checkpoint, by its manifest."""
    saved = manifest.get("config")
    if not isinstance(saved, dict):  # of format 1
        return bool(manifest.get("config_hash", config_hash(config)) == config_hash(config))
    return not refusals(changes(saved, config), run_id=run.run_id, allow=config.resume.allow_changes)


def _adopt_wandb_id(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """One run in W&B, though it has moved to a directory that has an id of its own already."""
    wandb_id = manifest.get("wandb_id")
    if isinstance(wandb_id, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", wandb_id):
        run.wandb_id()  # makes the folder
        write_atomically(run.wandb_dir / "wandb_id", wandb_id)


def _asked(remote: RemoteCheckpoints, attempt: Callable[[], Value]) -> Value:
    """Try a few times, unless the answer will not change."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ in _LASTING:
                accepted = f"a folder that can be written ({reason})"
                raise ConfigError(
                    [Problem(key="checkpoint.remote_dir", received=remote.url, accepted=accepted)]
                ) from error
            if number == ATTEMPTS:
                raise UnreachableError(f"{remote.url}: {ATTEMPTS} attempts failed, the last with {reason}") from error
            pause_s = FIRST_PAUSE_S * 2 ** (number - 1) * _RANDOM.uniform(0.5, 1.0)
            logger.warning("%s: attempt %d of %d: %s; again in %.1f s", remote.url, number, ATTEMPTS, reason, pause_s)
            time.sleep(pause_s)
    raise AssertionError("no attempt was made")
