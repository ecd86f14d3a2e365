"""Lightning strategies: one device, DDP, DeepSpeed ZeRO; and a DeepSpeed on CPUs, so that it is tested for real."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from configs.files import read_json
from configs.schema import Config
from trainer.buckets import bucket_count
from trainer.checkpoint_files import MANIFEST, WEIGHTS, load_content
from trainer.consolidation import load_saved_weights
from trainer.elastic_zero import OPTIMIZER, STATE, restore
from trainer.processes import Processes


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's, with checkpoints that any number of processes loads.

    Attributes:
        has_dealt_anew: Whether the checkpoint loaded was of another number of processes.
    """

    has_dealt_anew = False

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Lightning has divided by the accumulation; DeepSpeed would do that a second time."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """DeepSpeed's parts, and beside them what is neither weights nor optimizer."""
        super().save_checkpoint(checkpoint, filepath, storage_options)
        if self.is_global_zero:
            state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
            # By DeepSpeed's writer, whose errors are kept (zero_files.py): the other ranks are at a barrier by now.
            writer: Any = self.deepspeed_engine.checkpoint_engine
            writer.save(state, str(Path(filepath).with_name(STATE)))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """DeepSpeed's parts where there is one for each process, else what was saved as a whole."""
        folder = Path(checkpoint_path).parent
        if read_json(folder / MANIFEST)["world_size"] == self.world_size:
            return super().load_checkpoint(checkpoint_path, weights_only)
        self.has_dealt_anew = True
        assert self.lightning_module is not None
        network = self.lightning_module.network
        assert isinstance(network, nn.Module)
        restore(self, network, load_saved_weights(folder / WEIGHTS)["raw"], folder / OPTIMIZER)
        return load_content(folder / STATE)


class CpuDeepSpeedStrategy(ZeroStrategy):
    """DeepSpeed over gloo. Lightning's own refuses any device but CUDA, though DeepSpeed has a CPU backend."""

    def setup_environment(self) -> None:
        """As DDP does; skips the check for CUDA in the class between."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """As Lightning does, without the check that devices are 0, 1, …: every CPU rank has the same device."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        """The CPU, with the index that DeepSpeed wants of a device."""
        return torch.device("cpu", self.local_rank)


class DataParallelStrategy(DDPStrategy):
    """Lightning's DDP, whose gradients are summed in pieces while the backward pass still makes others.

    What is set, and why: gradients are views of the buckets that are sent, which saves a copy and their memory; no
    buffers are broadcast, since BatchNormStatistics keeps them alike; the graph is not declared static: freezing
    changes it in mid-run, torch's reducer fails on it where micro-batches accumulate (an internal assertion, in 2.15
    too), and elsewhere nothing is searched for that this would save.
    """

    def __init__(self, comm_hook: str | None, **arguments: Any) -> None:
        """With ``fp16`` or ``bf16`` as ``comm_hook``, gradients are rounded to that before they are summed."""
        super().__init__(gradient_as_bucket_view=True, broadcast_buffers=False, **arguments)
        self._rounds_to = comm_hook

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """Cut the gradients into a few buckets."""
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        self._ddp_kwargs["bucket_cap_mb"] = gradients / bucket_count(gradients) / 2**20
        return super()._setup_model(model)

    def _register_ddp_hooks(self) -> None:
        """On any device: Lightning leaves hooks out on the CPU."""
        assert isinstance(self.model, DistributedDataParallel)
        if self._rounds_to is not None:
            hook = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}[self._rounds_to]
            self.model.register_comm_hook(self.model.process_group, hook)


def build_strategy(config: Config, processes: Processes, accelerator: str) -> Strategy:
    """The strategy of a configuration for the processes that the launcher made."""
    timeout = timedelta(seconds=config.fault.timeout_s)
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if config.trainer.strategy == "deepspeed":
        assert config.deepspeed.zero_stage is not None
        if accelerator == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        kind = ZeroStrategy if accelerator == "cuda" else CpuDeepSpeedStrategy
        strategy = kind(
            stage=config.deepspeed.zero_stage,
            offload_optimizer=config.deepspeed.offload_optimizer,
            pin_memory=accelerator == "cuda",
            process_group_backend=backend,
            timeout=timeout,
            logging_batch_size_per_gpu=config.data.micro_batch_size,
        )
        assert strategy.config is not None
        # DeepSpeed asks for its own Adam or Lion on the host: with timm's the run is the same with and without.
        strategy.config["zero_force_ds_cpu_optimizer"] = False
        return strategy
    if processes.is_distributed:
        return DataParallelStrategy(
            config.trainer.ddp_comm_hook,
            process_group_backend=backend,
            timeout=timeout,
            find_unused_parameters=config.model.freeze_backbone_epochs > 0,
        )
    return SingleDeviceStrategy(device="cuda:0" if accelerator == "cuda" else "cpu")
