"""Loggers: metrics.csv always, Weights & Biases and TensorBoard where wanted. None of them can stop a run."""

from contextlib import suppress
from functools import partial

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger

from configs.files import read_json
from configs.run import RunDirectory
from configs.schema import Config
from trainer.logs import logger
from trainer.metrics_csv import MetricsCsv
from trainer.wandb_client import FINISH_TIMEOUT_S, INIT_TIMEOUT_S
from trainer.wandb_logger import SafeWandbLogger, sync_command

__all__ = ["FINISH_TIMEOUT_S", "MetricsCsv", "SafeWandbLogger", "alert", "build_loggers", "sync_command"]


def alert(trainer: Trainer, title: str, text: str) -> None:
    """Tell whoever has asked W&B to be told. For rank 0; on others nothing."""
    for tracker in trainer.loggers:
        if isinstance(tracker, SafeWandbLogger) and trainer.is_global_zero:
            tracker.alert(title, text)


def stop(run: RunDirectory) -> None:
    """Heed whoever has stopped the run on W&B's page: as after a signal, but that its job does not come again."""
    from wandb.sdk.lib import interrupt

    logger.warning("stopped on W&B's page")
    with suppress(OSError):
        run.keep_from_queue()
    interrupt.interrupt_main()  # type: ignore[no-untyped-call]


def build_loggers(config: Config, run: RunDirectory, *, resumed_step: int, validated: bool = True) -> list[Logger]:
    """The loggers of rank 0; others get loggers that do nothing."""
    loggers: list[Logger] = [MetricsCsv(run, resumed_step=resumed_step, validated=validated)]
    if config.tracking.tensorboard:
        from trainer.tensorboard_logger import SafeTensorBoardLogger

        loggers.append(SafeTensorBoardLogger(run, resumed_step=resumed_step))
    if config.tracking.mode != "disabled":
        import wandb

        trial = read_json(run.trial_file)
        # Not by the client's environment variables: these would have it choose the run itself.
        sweep_id = trial.get("sweep") if config.tracking.mode == "online" else None
        loggers.append(
            SafeWandbLogger(
                sync=sync_command(run),
                name=run.run_id,
                id=run.wandb_id(),
                resume="allow",
                project=config.tracking.project,
                entity=config.tracking.entity,
                tags=list(config.tracking.tags),
                group=config.tracking.group,
                notes=config.tracking.notes,
                save_dir=run.path,
                offline=config.tracking.mode == "offline",
                config=trial.get("parameters"),
                settings=wandb.Settings(
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    finish_timeout_raises=True,
                    sweep_id=sweep_id,
                    stop_fn=partial(stop, run),
                    # What kill -9 takes of the file that `wandb sync` reads; by default 15 s.
                    x_transaction_log_flush_interval=1.0,
                ),
            )
        )
    return loggers
