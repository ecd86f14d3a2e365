"""Where an attempt begins: rank 0 picks a checkpoint, and all ranks go on from that one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from configs.changes import Change, changes, refusals
from configs.files import read_json
from configs.problems import ConfigError, Problem
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.bars import no_bar, progress_on
from trainer.checkpoint_files import CHECKPOINT, KEY, MANIFEST, load_content, read_manifest, refuse_newer_format
from trainer.checkpoints import CheckpointDirectory
from trainer.elastic_zero import OPTIMIZER
from trainer.fetching import fetch_newest, share_rollbacks
from trainer.logs import logger
from trainer.processes import Processes
from trainer.rendezvous import on_first_rank
from trainer.rollback import Rollbacks


class Start(NamedTuple):
    """Where an attempt begins.

    Attributes:
        checkpoint: Its directory; None begins anew.
        step: Optimizer steps done.
        validated: Whether the validation that belongs to that step is done.
        changed: Whether settings are others than those that the checkpoint was saved with, and the run no longer
            what it was.
        next_batch: The global batch with which to go on; None for the one in its turn.
        rollbacks: Of the run, as rank 0 has read them: what each rank finds in the file may be older.
        origin: The path, as a user gave it (``resume``), of the checkpoint that this one has come from; or ``auto``.
    """

    checkpoint: Path | None = None
    step: int = 0
    validated: bool = True
    changed: bool = False
    next_batch: int | None = None
    rollbacks: tuple[dict[str, Any], ...] = ()
    origin: str = "auto"


START_ANEW = Start()


def choose(
    config: Config,
    run: RunDirectory,
    processes: Processes,
    *,
    attempt: int,
    console: Console,
    progress: Console | None = None,
) -> Start:
    """Have rank 0 fetch what a remote folder has newer, put away what is damaged, and pick; the others wait.

    Settings that have changed since are printed, old beside new; how far fetching is, on ``progress``.

    Raises:
        ConfigError: If the configuration or the number of processes does not fit what is there.
        DataError: If the checkpoint that was named does not verify; on the other ranks, whatever rank 0 found.
        UnreachableError: If a remote folder does not answer.
    """

    def pick() -> dict[str, Any]:
        if config.checkpoint.remote_dir is not None:
            fetch_newest(config, run, is_first=attempt == 0, bar=progress_on(progress) if progress else no_bar)
        checkpoints, rollbacks = CheckpointDirectory(run.checkpoints), Rollbacks.read(run.rollbacks_file)
        path = find_checkpoint(config, checkpoints, rollbacks)
        manifest = read_json(path / MANIFEST) if path is not None else {}  # it has just been verified
        changed: list[Change] = []
        if path is not None:  # before anything is put aside for it
            changed = _changes_since(path, manifest, config, run)
            _check_parts(config, path, saved=manifest["world_size"], present=processes.world_size)
        if path is not None and path == Path(config.resume.checkpoint):
            rollbacks = go_back(path, manifest, checkpoints, rollbacks)
            share_rollbacks(config, run)
        rollbacks.discard(checkpoints, chosen=path)
        size, wanted = config.data.global_batch_size, config.resume.checkpoint
        start = {
            "next_batch": rollbacks.next_batch(path, checkpoints, global_batch_size=size),
            "rollbacks": rollbacks.records,
            "origin": "auto" if wanted == "never" else wanted,
        }
        if path is None:
            return start
        _show(changed, path, console)
        if config.trainer.sync_batchnorm and manifest["world_size"] != processes.world_size:
            logger.warning(
                "trainer.sync_batchnorm: BatchNorm saw the micro-batches of %d processes together and now sees those "
                "of %d: from here on the run is another, on the same samples",
                manifest["world_size"],
                processes.world_size,
            )
        return start | {
            "checkpoint": str(path),
            "step": int(manifest["step"]),
            "validated": bool(manifest.get("validated", True)),
            "changed": any(change.kind != "harmless" for change in changed),
            "origin": _inherited(manifest) if start["origin"] == "auto" else start["origin"],
        }

    found = on_first_rank(processes, pick)
    assert found is not None
    path = found.get("checkpoint")
    return Start(**{**found, "checkpoint": path and Path(path), "rollbacks": tuple(found["rollbacks"])})


def find_checkpoint(config: Config, checkpoints: CheckpointDirectory, rollbacks: Rollbacks) -> Path | None:
    """The checkpoint to go on from, by ``resume``. The newest that are damaged go to quarantine.

    Raises:
        DataError: If the one that is named does not verify.
    """
    wanted = config.resume.checkpoint

    def admitted(*, quarantine: bool) -> Iterator[Path]:
        return (path for path in checkpoints.verified(quarantine=quarantine) if rollbacks.admit(path, checkpoints))

    # Where there was a checkpoint, the launcher has refused `never`: those that are there now were saved since.
    if wanted in ("auto", "never"):
        return next(admitted(quarantine=True), None)
    # Attempts that began there have gone on.
    for path in admitted(quarantine=False):
        if read_json(path / MANIFEST).get("resume") == wanted:
            return path
    read_manifest(Path(wanted))
    return Path(wanted)


def go_back(path: Path, manifest: dict[str, Any], checkpoints: CheckpointDirectory, rollbacks: Rollbacks) -> Rollbacks:
    """Put aside what is later than a checkpoint that a user has named, for good; returns what there is to know then."""
    step = int(manifest["step"])
    rollbacks = rollbacks.rewind(step, resume=str(path))
    checkpoints.supersede(step)
    return rollbacks


def _inherited(manifest: dict[str, Any]) -> str:
    origin = str(manifest.get("resume", "auto"))
    return "auto" if origin == "never" else origin


def _changes_since(path: Path, manifest: dict[str, Any], config: Config, run: RunDirectory) -> list[Change]:
    """Settings that are others than a checkpoint was saved with.

    Raises:
        ConfigError: If one of them may not be.
        DataError: If the checkpoint is of a newer format.
    """
    refuse_newer_format(path)
    saved = manifest.get("config")
    if saved is None and (path / CHECKPOINT).is_file():  # format 1 has it in its content alone
        saved = load_content(path / CHECKPOINT)[KEY]["config"]
    found = changes(saved, config) if saved is not None else []
    problems = refusals(found, run_id=run.run_id, allow=config.resume.allow_changes)
    if problems:
        raise ConfigError(problems)
    return found


def _show(changed: list[Change], path: Path, console: Console) -> None:
    if not changed:
        return
    table = Table(title=f"changed since {path.name}", title_justify="left", box=None, pad_edge=False)
    for name in ("setting", "was", "is"):
        table.add_column(name, overflow="fold")
    for change in changed:
        logger.debug("changed since %s: %s was %s, is %s", path.name, change.key, change.old, change.new)
        table.add_row(change.key, change.old, change.new, style=None if change.kind == "harmless" else "yellow")
    console.print(table, markup=False)
    if any(change.kind != "harmless" for change in changed):
        logger.warning("resume.allow_changes: from here on the run is another than one that was never interrupted")


def _check_parts(config: Config, path: Path, *, saved: int, present: int) -> None:
    """A ZeRO checkpoint is for DeepSpeed alone, and one of format 1 for as many processes as have saved it.

    Raises:
        ConfigError: If it does not fit.
    """
    in_parts = (path / CHECKPOINT).is_dir()
    anew = f"its weights alone begin another run: run_id=NEW model.checkpoint_path={path}"
    if in_parts != (config.trainer.strategy == "deepspeed"):
        accepted = f"{'deepspeed' if in_parts else 'another'}: that is what {path} was saved under; {anew}"
        raise ConfigError([Problem(key="trainer.strategy", received=config.trainer.strategy, accepted=accepted)])
    if in_parts and saved != present and not (path / OPTIMIZER).exists():
        accepted = f"{saved} processes in all: {path} is of ZeRO, in a part for each; {anew}"
        raise ConfigError([Problem(key="trainer.devices", received=f"{present} processes", accepted=accepted)])
