"""``python -m trainer fit``: the composition root of training. Builds the parts, trains, says what came of it."""

import contextlib
from pathlib import Path

from rich.console import Console

from configs.problems import ConfigError, Problem
from configs.rank_records import StepFile
from configs.run import RunDirectory
from configs.schema import Config
from trainer.assembly import build_datamodule, build_module, build_trainer, resolve_accelerator
from trainer.batchnorm import BatchNormStatistics
from trainer.checkpointing import Checkpointing, Interrupted
from trainer.checkpoints import CHECKPOINT, CheckpointDirectory, read_manifest
from trainer.curves import draw_curves
from trainer.ema import WeightAverage
from trainer.environment import record_environment
from trainer.logs import logger
from trainer.metrics import TrainingMetrics
from trainer.nonfinite import NonFiniteSteps
from trainer.processes import Processes
from trainer.progress import ProgressDisplay
from trainer.remote_checkpoints import fetch_newest
from trainer.rendezvous import on_first_rank
from trainer.results import validation_table
from trainer.rollback import NO_ROLLBACKS, RollBack, Rollbacks
from trainer.signals import StopFlag
from trainer.tracking import SafeWandbLogger, build_loggers
from trainer.watchdog import Watchdog, WatchdogCallback


def fit(run: RunDirectory, *, attempt: int, flag: StopFlag, processes: Processes, console: Console) -> None:
    """Train a run to its end, or until a signal.

    Raises:
        Interrupted: After a signal, when the run is checkpointed.
        RollBack: When numbers went wrong, and the next attempt is to go back.
        ConfigError: If the configuration does not fit this machine.
        DataError: If the data is at fault.
    """
    config = run.load_config()
    accelerator = resolve_accelerator(config)
    checkpoints = CheckpointDirectory(run.checkpoints)
    if config.checkpoint.remote_dir is not None:
        on_first_rank(processes, lambda: fetch_newest(config, run))
    rollbacks = Rollbacks.read(run.rollbacks_file)
    resume_from = find_checkpoint(config, checkpoints, rollbacks)
    if _first(processes):
        rollbacks.discard(checkpoints, chosen=resume_from)
    resumed_step, validated = 0, True
    if resume_from is not None:
        manifest = read_manifest(resume_from)
        resumed_step, validated = int(manifest["step"]), bool(manifest.get("validated", True))
        _check_parts(config, resume_from, saved=manifest["world_size"], present=processes.world_size)
    commit = record_environment(run, attempt=attempt, world_size=processes.world_size) if _first(processes) else None

    metrics = TrainingMetrics(config, attempt=attempt)
    watchdog = Watchdog(run.log_dir(attempt), processes.global_rank, timeout_s=config.fault.hang_timeout_s)
    facts = {"attempt": attempt, "git_sha": commit, "wandb_id": run.wandb_id(), "rollbacks": len(rollbacks.records)}
    callbacks = [
        WatchdogCallback(watchdog, StepFile(run.log_dir(attempt), processes.global_rank)),
        NonFiniteSteps(config, run, rollbacks, attempt=attempt),
        BatchNormStatistics(),
        *([WeightAverage(config.ema)] if config.ema.enabled else []),
        metrics,
        ProgressDisplay(config, console, metrics),
        Checkpointing(config, checkpoints, flag, facts=facts, resumed=resume_from, alive=watchdog.alive),
    ]
    loggers = build_loggers(config, run, resumed_step=resumed_step, validated=validated)
    trainer = build_trainer(config, processes, accelerator, callbacks=callbacks, loggers=loggers)
    datamodule = build_datamodule(config, accelerator)
    datamodule.next_batch = rollbacks.next_batch(resume_from, checkpoints)
    module = build_module(config, restored=resume_from is not None)
    for tracker in loggers:
        if isinstance(tracker, SafeWandbLogger):
            tracker.log_hyperparams(config.model_dump(mode="json"))
    logger.info(
        "%s: %s, %d %s process%s, global batch %d",
        run.run_id,
        config.model.name,
        processes.world_size,
        accelerator,
        "es" if processes.world_size > 1 else "",
        config.data.global_batch_size,
    )
    exit_code, interrupted = 1, False
    try:
        ckpt_path = str(resume_from / CHECKPOINT) if resume_from else None
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
        exit_code = 0
    except Interrupted:
        interrupted = True
        raise
    except RollBack as error:
        interrupted = True
        if flag.received is not None:  # or the launcher would begin again
            raise Interrupted(f"{flag.received.name}, and {error}") from error
        raise
    finally:
        if trainer.is_global_zero:
            for tracker in loggers:
                if isinstance(tracker, SafeWandbLogger):
                    tracker.finish(exit_code)
        if interrupted:
            # torchrun kills the others when the first process ends, and rank 0 may be at W&B's end still. All have the
            # checkpoint: whoever is lost from here on takes nothing back.
            with contextlib.suppress(RuntimeError):
                trainer.strategy.barrier("tracked")
    if trainer.is_global_zero:
        draw_curves(run.metrics_file, run.path / "curves.png")
        _report(run, config, {name: float(value) for name, value in trainer.callback_metrics.items()}, console)


def find_checkpoint(
    config: Config, checkpoints: CheckpointDirectory, rollbacks: Rollbacks = NO_ROLLBACKS
) -> Path | None:
    """The checkpoint to go on from, by `resume`.

    Raises:
        ConfigError: With `never` in a run that has one, or a path that does not verify.
    """
    admitted = (path for path in checkpoints.verified() if rollbacks.admit(path, checkpoints))
    if config.resume == "auto":
        return next(admitted, None)
    if config.resume == "never":
        newest = next(admitted, None)
        if newest is not None:
            raise ConfigError(
                [Problem(key="resume", received="never", accepted=f"auto, or another run_id: {newest} exists")]
            )
        return None
    # Attempts that began there have gone on.
    for path in admitted:
        if read_manifest(path).get("resume") == config.resume:
            return path
    path = Path(config.resume)
    read_manifest(path)
    return path


def _check_parts(config: Config, path: Path, *, saved: int, present: int) -> None:
    """A ZeRO checkpoint lies in parts, one a process: it fits that number of processes, and DeepSpeed alone.

    Raises:
        ConfigError: If it does not fit.
    """
    in_parts = (path / CHECKPOINT).is_dir()
    if in_parts != (config.trainer.strategy == "deepspeed"):
        accepted = f"{'deepspeed' if in_parts else 'another'}: that is what {path} was saved under"
        raise ConfigError([Problem(key="trainer.strategy", received=config.trainer.strategy, accepted=accepted)])
    if in_parts and saved != present:
        accepted = f"{saved} processes in all: {path} is of ZeRO, in a part for each"
        raise ConfigError([Problem(key="trainer.devices", received=f"{present} processes", accepted=accepted)])


def _first(processes: Processes) -> bool:
    return processes.global_rank == 0


def _report(run: RunDirectory, config: Config, metrics: dict[str, float], console: Console) -> None:
    lines = [f"curves  {run.path / 'curves.png'}", "next"]
    lines += [f"  effnet fit --run {run.path}    # resumes a run that was stopped; this one is done"]
    lines += [f"  effnet validate {run.path}"]
    if config.tracking.mode == "offline":
        lines += [f"  wandb sync {run.wandb_dir}/offline-run-*"]
    console.print()
    if metrics:
        console.print(validation_table(f"{run.run_id}: done", metrics))
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
