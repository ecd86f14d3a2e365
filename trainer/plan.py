"""``python -m trainer.plan``: what a run will need and how long it will take, before it runs (``effnet plan``)."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from configs.batches import BatchLayout, epoch_end_step
from configs.problems import ConfigError, Problem
from configs.run import EXIT_DO_NOT_RETRY, EXIT_DONE
from configs.schema import Config
from trainer.network import image_size
from trainer.plan_data import Samples, find_samples
from trainer.plan_limits import Duration, plan_duration
from trainer.plan_memory import CheckpointSize, Memory, gradients_stay, plan_checkpoints, plan_memory
from trainer.plan_network import Traffic, plan_traffic
from trainer.plan_step import FakeTraining
from trainer.plan_tables import show_plan
from trainer.plan_time import DeviceTime, peak_flops, plan_device_time


@dataclass(frozen=True, kw_only=True)
class Network:
    """Size of the network, and the work of one image.

    Attributes:
        parameters: All that are trained.
        macs: Multiply-adds of the forward pass.
        flops: Floating-point operations of forward and backward pass.
        moved_bytes: What both read and write, operation by operation, in training's precision.
    """

    parameters: int
    macs: int
    flops: int
    moved_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that `effnet plan` says; no `device_time` and `duration` where `launch.hardware` describes no device."""

    name: str
    device: str | None
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    image_size: int
    micro_batch_size: int
    accumulate_grad_batches: int
    steps: int
    network: Network
    memory: Memory
    traffic: Traffic
    checkpoints: CheckpointSize
    samples: Samples
    device_time: DeviceTime | None
    duration: Duration | None


def make_plan(config: Config, *, devices: int, samples: int | None = None) -> Plan:
    """The plan of a configuration.

    Args:
        config: Of the run.
        devices: Of each node.
        samples: Of an epoch, where neither an index nor a name says so.

    Raises:
        ConfigError: If the configuration makes no run, or leaves open how many samples there are.
    """
    data, trainer = config.data, config.trainer
    world_size = devices * trainer.num_nodes
    peak_flops(config)  # refuses a precision that the device lacks, before anything is counted
    accumulate = _layout(config, world_size).accumulate_grad_batches
    found = find_samples(data, samples)
    training = FakeTraining(config)
    other = data.micro_batch_size // 2 if data.micro_batch_size >= 4 else data.micro_batch_size + 1
    stay = gradients_stay(config, world_size)
    one = training.run(data.micro_batch_size, gradients_stay=stay)
    passes = (one, training.run(other, gradients_stay=stay))
    update = training.update()
    parameters = sum(parameter.numel() for parameter in training.network.parameters())
    memory = plan_memory(config, training, passes, update, world_size=world_size)
    steps = epoch_end_step(trainer.max_epochs, samples=found.training, global_batch_size=data.global_batch_size)
    steps = min(steps, trainer.max_steps or steps)
    epochs = steps * data.global_batch_size // found.training
    traffic = plan_traffic(
        config,
        parameters=parameters,
        statistics_bytes=memory.buffers,
        world_size=world_size,
        accumulate=accumulate,
    )
    time = plan_device_time(config, one, update, gradient_bytes=memory.gradients, average_bytes=memory.average)
    return Plan(
        name=config.name,
        device=config.launch.hardware.device,
        devices=devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(config, world_size),
        precision=trainer.precision,
        image_size=image_size(config),
        micro_batch_size=data.micro_batch_size,
        accumulate_grad_batches=accumulate,
        steps=steps,
        network=Network(
            parameters=parameters,
            macs=one.forward_macs // one.images,
            flops=sum(flops for flops, _ in one.kernels) // one.images,
            moved_bytes=sum(size for _, size in one.kernels) // one.images,
        ),
        memory=memory,
        traffic=traffic,
        checkpoints=plan_checkpoints(config, training, update, epochs=epochs),
        samples=found,
        device_time=time,
        duration=plan_duration(config, time, traffic, found, world_size=world_size, steps=steps, epochs=epochs)
        if time is not None
        else None,
    )


def _strategy(config: Config, world_size: int) -> str:
    strategy = config.trainer.strategy
    if strategy == "deepspeed":
        return f"deepspeed, ZeRO {config.deepspeed.zero_stage}"
    return strategy if strategy != "auto" else "single" if world_size == 1 else "ddp"


def _layout(config: Config, world_size: int) -> BatchLayout:
    data = config.data
    try:
        return BatchLayout(
            global_batch_size=data.global_batch_size, micro_batch_size=data.micro_batch_size, world_size=world_size
        )
    except ValueError as error:
        problem = Problem(key="data.global_batch_size", received=str(data.global_batch_size), accepted=str(error))
        raise ConfigError([problem]) from None


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures by name, in bytes and seconds where the name says no other unit."""
    tree = asdict(plan)
    tree["memory"]["fits"] = plan.memory.fits
    tree["traffic"]["total_bytes"] = plan.traffic.total_bytes
    return tree


def main() -> int:
    """Read a configuration from standard input, as JSON, and print its plan."""
    parser = argparse.ArgumentParser(prog="python -m trainer.plan", description=__doc__)
    parser.add_argument("--devices", type=int, required=True, help="devices of each node")
    parser.add_argument("--samples", type=int, help="training samples of an epoch")
    parser.add_argument("--json", action="store_true", help="the same as one object of JSON")
    arguments = parser.parse_args()
    try:
        config = Config.model_validate_json(sys.stdin.read())
        plan = make_plan(config, devices=arguments.devices, samples=arguments.samples)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_DO_NOT_RETRY
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(plan), indent=2) + "\n")
    else:
        show_plan(plan, Console())
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
