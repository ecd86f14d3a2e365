"""From a configuration to module, data and Lightning Trainer: the parts that training and evaluation share."""

import os
import warnings
from typing import Any, Literal

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from configs.batches import BatchLayout
from configs.checks.training import graph_problems
from configs.problems import ConfigError, Problem
from configs.progressive import stage_configs
from configs.schema import Config
from datamodules.imagenet import ImageNetDataModule
from datamodules.streaming.randomness import WEIGHTS, seed_everything
from trainer.checkpoint_files import CheckpointFile
from trainer.host_memory import keep_freed_memory
from trainer.module import EfficientNetModule
from trainer.network import build_network, image_size
from trainer.processes import Processes
from trainer.strategies import build_strategy


def resolve_accelerator(config: Config) -> Literal["cpu", "cuda"]:
    """The device kind that `auto` stands for here.

    Raises:
        ConfigError: If CUDA is asked for and absent, or the precision needs it.
    """
    available = torch.cuda.is_available()
    if config.trainer.accelerator == "cuda" and not available:
        raise ConfigError([Problem(key="trainer.accelerator", received="cuda", accepted="cpu: no CUDA device is here")])
    accelerator: Literal["cpu", "cuda"] = "cuda" if available and config.trainer.accelerator != "cpu" else "cpu"
    if accelerator == "cpu" and config.trainer.strategy == "deepspeed" and config.trainer.precision != "32-true":
        # It casts weights and not BatchNorm's buffers, and the CPU's batch_norm wants both alike.
        received, accepted = config.trainer.precision, "32-true: no CUDA device is here, and the strategy is deepspeed"
        raise ConfigError([Problem(key="trainer.precision", received=received, accepted=accepted)])
    if accelerator == "cpu" and config.trainer.precision == "16-mixed":
        raise ConfigError(
            [
                Problem(
                    key="trainer.precision",
                    received="16-mixed",
                    accepted="32-true or bf16-mixed: no CUDA device is here",
                )
            ]
        )
    if accelerator == "cpu" and config.data.decoder == "nvjpeg":
        raise ConfigError([Problem(key="data.decoder", received="nvjpeg", accepted="cpu: no CUDA device is here")])
    return accelerator


def rank_device(processes: Processes, accelerator: str) -> torch.device:
    """The device of this rank, which is then CUDA's own choice too."""
    if accelerator != "cuda":
        return torch.device("cpu")
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


def build_datamodule(config: Config, accelerator: str) -> ImageNetDataModule:
    """The data of a configuration."""
    return ImageNetDataModule(
        config.data,
        seed=config.seed,
        image_size=image_size(config),
        in_chans=config.model.in_chans,
        pin_memory=accelerator == "cuda",
        stages=[
            (stage.until_epoch, of_stage.data)
            for stage, of_stage in zip(config.progressive.stages, stage_configs(config), strict=False)
        ],
    )


def build_module(config: Config, *, restored: bool = False) -> EfficientNetModule:
    """The module with its initial weights, which depend on the seed alone, or soon ``restored`` from a checkpoint."""
    seed_everything(config.seed, WEIGHTS)
    network = build_network(config, restored=restored)
    # DeepSpeed flattens weights into its partitions, and broadcasts none that are not contiguous; images are
    # channels_last there too.
    if config.trainer.channels_last and config.trainer.strategy != "deepspeed":
        network = network.to(memory_format=torch.channels_last)
    if config.trainer.gradient_checkpointing:
        network.set_grad_checkpointing()  # type: ignore[operator]
    if config.trainer.compile is not None:
        # In place, so that names stay. Shapes are fixed: those of training and those of evaluation.
        network.compile(mode=config.trainer.compile, dynamic=False)
    return EfficientNetModule(config, network)


def build_trainer(
    config: Config,
    processes: Processes,
    accelerator: str,
    *,
    callbacks: list[Callback],
    loggers: list[Logger],
) -> Trainer:
    """Lightning's Trainer, with its signal handling taken out.

    Raises:
        ConfigError: If the global batch cannot be dealt to the processes that were started.
    """
    threads = config.trainer.num_threads or max((os.cpu_count() or 1) // processes.local_world_size, 1)
    torch.set_num_threads(threads)
    # Where no launcher has set it, Lightning's DDP would, and torch's number with it.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if accelerator == "cpu":
        keep_freed_memory()
    precision = config.trainer.matmul_precision
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"
    data = config.data
    try:
        layout = BatchLayout(
            global_batch_size=data.global_batch_size,
            micro_batch_size=data.micro_batch_size,
            world_size=processes.world_size,
        )
    except ValueError as error:
        size = str(data.global_batch_size)
        raise ConfigError([Problem(key="data.global_batch_size", received=size, accepted=str(error))]) from None
    problems = list(graph_problems(config, processes.world_size))  # of `trainer.devices=auto` it is known now
    if problems:
        raise ConfigError(problems)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    # Named, because by itself Lightning takes what it detects: inside a Slurm allocation, Slurm's tasks.
    environment = TorchElasticEnvironment() if processes.is_distributed else LightningEnvironment()
    # What Lightning does not know, the module does by itself.
    clips = config.trainer.gradient_clip_val is not None and config.trainer.gradient_clip_algorithm != "agc"
    arguments: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": processes.local_world_size,
        "num_nodes": processes.num_nodes,
        "strategy": build_strategy(config, processes, accelerator),
        "precision": config.trainer.precision,
        "plugins": [environment, *([] if config.trainer.strategy == "deepspeed" else [CheckpointFile()])],
        "deterministic": config.trainer.deterministic,
        "benchmark": config.trainer.benchmark and not config.trainer.deterministic,
        "max_epochs": config.trainer.max_epochs,
        "max_steps": config.trainer.max_steps or -1,
        "accumulate_grad_batches": layout.accumulate_grad_batches,
        "gradient_clip_val": config.trainer.gradient_clip_val if clips else None,
        "gradient_clip_algorithm": config.trainer.gradient_clip_algorithm if clips else None,
        "check_val_every_n_epoch": config.trainer.check_val_every_n_epoch,
        "log_every_n_steps": config.trainer.log_every_n_steps,
        # Each epoch asks the data module for the rest of that epoch: epochs differ by a step where a batch spans their
        # seam.
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(callbacks=callbacks, logger=loggers, **arguments)
    # Lightning's SIGTERM handler runs a collective inside the handler, which deadlocks, and its loop broadcasts and
    # reads a tensor before every batch, which makes the host wait for the device
    # (https://github.com/Lightning-AI/pytorch-lightning/issues/21406 and /21487). trainer/signals.py does their work.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
