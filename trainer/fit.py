"""``python -m trainer fit``: the composition root of training. Builds the parts, trains, says what came of it."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning import Callback, Trainer
from rich.console import Console

from configs.rank_records import StepFile
from configs.run import PREFLIGHT, RunDirectory
from configs.schema import Config
from datamodules.bars import Lines
from trainer.assembly import build_datamodule, build_module, build_trainer, resolve_accelerator
from trainer.batchnorm import BatchNormStatistics
from trainer.checkpoint_artifacts import CheckpointArtifacts
from trainer.checkpoint_files import CHECKPOINT
from trainer.checkpointing import Checkpointing, Interrupted
from trainer.checkpoints import CheckpointDirectory
from trainer.curves import draw_curves
from trainer.distillation import Distillation, build_teacher
from trainer.ema import WeightAverage
from trainer.environment import record_environment
from trainer.evaluation.final import FinalValidation
from trainer.grace import left_s
from trainer.loader_rates import LoaderRates
from trainer.logs import logger
from trainer.metrics import TrainingMetrics
from trainer.node_metrics import NodeMetrics
from trainer.nonfinite import NonFiniteSteps
from trainer.processes import Processes
from trainer.profiling import StepTrace
from trainer.progress import ProgressDisplay
from trainer.results import validation_table
from trainer.resuming import choose
from trainer.rollback import RollBack, Rollbacks
from trainer.run_facts import RunFacts
from trainer.signals import StopFlag
from trainer.sync_batchnorm import synchronise_as_configured
from trainer.tracking import SafeWandbLogger, alert, build_loggers, sync_command
from trainer.undoing import StepUndo, undoes
from trainer.watchdog import Watchdog, WatchdogCallback


def fit(
    run: RunDirectory,
    *,
    attempt: int,
    flag: StopFlag,
    processes: Processes,
    console: Console,
    progress: Console | None = None,
) -> None:
    """Train a run to its end, or until a signal. Progress is shown on ``progress``, in place of ``console``.

    Raises:
        Interrupted: After a signal, when the run is checkpointed.
        RollBack: When numbers went wrong, and the next attempt is to go back.
        ConfigError: If the configuration does not fit this machine.
        DataError: If the data is at fault, or a preflight has found what would stop the run.
    """
    config = run.load_config()
    if PREFLIGHT in os.environ:
        from trainer.doctor.examination import preflight

        preflight(config, run, attempt=attempt, processes=processes, console=console)
    accelerator = resolve_accelerator(config)
    datamodule = build_datamodule(config, accelerator)  # finds mistakes, before ranks wait for each other
    datamodule.index_progress = _say_now_and_then(Lines("indexing shards"))
    checkpoints = CheckpointDirectory(run.checkpoints)
    start = choose(config, run, processes, attempt=attempt, console=console, progress=progress or console)
    rollbacks = Rollbacks(run.rollbacks_file, start.rollbacks)
    commit = None
    if _first(processes):
        world_size = processes.world_size
        commit = record_environment(run, attempt=attempt, world_size=world_size, resumed_from=start.checkpoint)

    watchdog = Watchdog(run.log_dir(attempt), processes.global_rank, timeout_s=config.fault.hang_timeout_s)
    loggers = build_loggers(config, run, resumed_step=start.step, validated=start.validated)
    artifacts = CheckpointArtifacts.of(config, run, loggers, flag) if _first(processes) else None
    facts = {"attempt": attempt, "git_sha": commit, "wandb_id": run.wandb_id(), "rollbacks": len(rollbacks.records)}
    checkpointing = Checkpointing(
        config,
        checkpoints,
        flag,
        facts=facts,
        start=start,
        alive=watchdog.alive,
        saved=artifacts.saved if artifacts is not None else lambda _: None,
    )
    average = WeightAverage(config.ema) if config.ema.enabled else None
    metrics = TrainingMetrics(
        config,
        attempt=attempt,
        stalled_s=lambda: checkpointing.stalled_s,
        ema_decay=average.decay if average is not None else None,
        parts=(LoaderRates(), NodeMetrics(processes, run_dir=run.path, cache_dir=Path(config.data.cache_dir))),
    )
    final = FinalValidation(config, run)
    statistics = BatchNormStatistics()
    with_average = [average] if average is not None else []
    undo = StepUndo(statistics, *with_average) if undoes(config, accelerator) else None
    callbacks: list[Callback] = [
        WatchdogCallback(watchdog, StepFile(run.log_dir(attempt), processes.global_rank)),
        NonFiniteSteps(config, run, rollbacks, attempt=attempt, undo=undo),
        statistics,
        *with_average,
        *([undo] if undo is not None else []),
        metrics,
        RunFacts(config, run, attempt=attempt),
        final,
        ProgressDisplay(config, progress or console, metrics),
        *([StepTrace(config, run, attempt=attempt)] if config.trainer.profile_steps and _first(processes) else []),
        checkpointing,
    ]
    trainer = build_trainer(config, processes, accelerator, callbacks=callbacks, loggers=loggers)
    datamodule.next_batch = start.next_batch
    module = build_module(config, restored=start.checkpoint is not None)
    synchronise_as_configured(module.network, config, processes, accelerator)
    if config.distillation.teacher is not None:
        module.set_distillation(Distillation(config, *build_teacher(config)))
    for tracker in _wandb(trainer):
        tracker.log_hyperparams(config.model_dump(mode="json"))
    if artifacts is not None:
        artifacts.begin(module.network)
    logger.info(
        "%s: %s, %d %s process%s, global batch %d",
        run.run_id,
        config.model.name,
        processes.world_size,
        accelerator,
        "es" if processes.world_size > 1 else "",
        config.data.global_batch_size,
    )
    exit_code, interrupted, stopped = 1, False, False
    try:
        ckpt_path = str(start.checkpoint / CHECKPOINT) if start.checkpoint is not None else None
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
        exit_code = 0
        final.tell(trainer)
        if artifacts is not None:
            artifacts.trained()
    except Interrupted:
        interrupted = stopped = True
        for tracker in _wandb(trainer):
            tracker.mark_preempting()
        raise
    except RollBack as error:
        interrupted = True
        if flag.received is not None:  # or the launcher would begin again
            raise Interrupted(f"{flag.received.name}, and {error}") from error
        raise
    except Exception as error:
        text = f"{run.run_id}, attempt {attempt}, after step {trainer.global_step}: {type(error).__name__}: {error}"
        alert(trainer, "training failed", text)
        raise
    finally:
        within_s = left_s(flag) if stopped or flag.received is not None else None
        if artifacts is not None:
            artifacts.close(wait=exit_code == 0 and within_s is None)
        for tracker in _wandb(trainer):
            tracker.finish(exit_code, within_s=within_s)
        if artifacts is not None:
            artifacts.ended(done=exit_code == 0)
        if interrupted:
            # torchrun kills the others when the first process ends, and rank 0 may be at W&B's end still. All have the
            # checkpoint: whoever is lost from here on takes nothing back.
            with contextlib.suppress(RuntimeError):
                trainer.strategy.barrier("tracked")
    if trainer.is_global_zero:
        _draw_curves(run)
        _report(run, config, {name: float(value) for name, value in trainer.callback_metrics.items()}, console)


def _wandb(trainer: Trainer) -> list[SafeWandbLogger]:
    """On rank 0; none on the others."""
    return [each for each in trainer.loggers if isinstance(each, SafeWandbLogger) and trainer.is_global_zero]


def _draw_curves(run: RunDirectory) -> None:
    """On a full disk too a run that is done is done."""
    try:
        draw_curves(run.metrics_file, run.path / "curves.png")
    except Exception as error:
        logger.warning("curves.png is not drawn: %s", f"{type(error).__name__}: {error}")


def _say_now_and_then(lines: Lines) -> Callable[[int], None]:
    def advance(count: int) -> None:
        line = lines.advance(count)
        if line is not None:
            logger.info(line)

    return advance


def _first(processes: Processes) -> bool:
    return processes.global_rank == 0


def _report(run: RunDirectory, config: Config, metrics: dict[str, float], console: Console) -> None:
    lines = [f"curves  {run.path / 'curves.png'}", "next"]
    lines += [f"  effnet fit --run {run.path}    # resumes a run that was stopped; this one is done"]
    lines += [f"  effnet report {run.path}      # a page of it, with its worst and best predictions"]
    lines += [f"  effnet validate {run.path}"]
    if config.tracking.mode == "offline":
        lines += [f"  {sync_command(run)}"]
    console.print()
    if metrics:
        console.print(validation_table(f"{run.run_id}: done", metrics))
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
