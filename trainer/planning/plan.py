"""``python -m trainer.planning.plan``: what a run will need and how long it will take, before it runs."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from rich.console import Console

from configs.batches import BatchLayout
from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE
from configs.problems import ConfigError, Problem
from configs.schema import Config
from trainer.planning.data import Samples, find_samples
from trainer.planning.duration import Duration, Totals, plan_duration, plan_stage_time, plan_totals
from trainer.planning.figures import EvaluationFigures, Network, StageFigures, Teacher
from trainer.planning.memory import CheckpointSize, Memory, gradients_stay, plan_checkpoints, plan_memory
from trainer.planning.network import Traffic, plan_traffic
from trainer.planning.stages import Stage, training_stages
from trainer.planning.step import FakeTraining
from trainer.planning.tables import show_plan
from trainer.planning.time import evaluation_seconds, peak_flops, plan_device_time
from trainer.planning.work import Pass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that `effnet plan` says.

    Attributes:
        heaviest: Number of the stage of training that needs the most memory, which `network`, `teacher` and `memory`
            are of.
        duration: None where `launch.hardware` describes no device.
    """

    name: str
    device: str | None
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    micro_batch_size: int
    accumulate_grad_batches: int
    heaviest: int
    network: Network
    teacher: Teacher | None
    memory: Memory
    traffic: Traffic
    checkpoints: CheckpointSize
    samples: Samples
    stages: tuple[StageFigures, ...]
    evaluation: EvaluationFigures
    duration: Duration | None
    totals: Totals


def make_plan(config: Config, *, devices: int, samples: int | None = None) -> Plan:
    """The plan of a configuration.

    Args:
        config: Of the run.
        devices: Of each node.
        samples: Of an epoch, where neither an index nor a name says so.

    Raises:
        ConfigError: If the configuration makes no run, or leaves open how many samples there are.
    """
    trainer, size = config.trainer, config.data.micro_batch_size
    world_size = devices * trainer.num_nodes
    peak_flops(config)  # refuses a precision that the device lacks, before anything is counted
    accumulate = _layout(config, world_size).accumulate_grad_batches
    found = find_samples(config.data, samples)
    stages = training_stages(config, samples=found.training)
    training = FakeTraining(config)
    run = cache(partial(training.run, gradients_stay=gradients_stay(config, world_size)))
    passes = [run(size, pixels=stage.image_size, frozen=stage.frozen) for stage in stages]
    heaviest = max(range(len(stages)), key=lambda number: passes[number].peak_bytes)
    one, stage = passes[heaviest], stages[heaviest]
    other = run(size // 2 if size >= 4 else size + 1, pixels=stage.image_size, frozen=stage.frozen)
    update, evaluation = training.update(), training.evaluate()
    memory = plan_memory(config, training, (one, other), update, world_size=world_size, evaluation=evaluation)
    network = Network.of(training, one)
    traffic = plan_traffic(
        config,
        parameters=network.parameters,
        statistics_bytes=memory.buffers,
        world_size=world_size,
        accumulate=accumulate,
    )
    totals = plan_totals(config, found, traffic, steps=sum(stage.steps for stage in stages))
    seconds = evaluation_seconds(config, evaluation)
    evaluated = EvaluationFigures.of(config, evaluation, validations=totals.validations, seconds=seconds)

    def planned(stage: Stage, one: Pass) -> StageFigures:
        parts = {"gradient_bytes": memory.gradients, "average_bytes": memory.average, "undo_bytes": memory.undo}
        time = plan_device_time(config, one, update, **parts)
        return StageFigures(
            stage=stage,
            macs=one.forward_macs // one.images,
            activations=one.activation_bytes(memory.gradients, stay=gradients_stay(config, world_size)),
            time=None
            if time is None
            else plan_stage_time(config, time, traffic, found, steps=stage.steps, world_size=world_size),
        )

    rows = tuple(map(planned, stages, passes))
    times = [row.time for row in rows if row.time is not None]
    return Plan(
        name=config.name,
        device=config.launch.hardware.device,
        devices=devices,
        num_nodes=trainer.num_nodes,
        strategy=_strategy(config, world_size),
        precision=trainer.precision,
        micro_batch_size=size,
        accumulate_grad_batches=accumulate,
        heaviest=heaviest,
        network=network,
        teacher=Teacher.of(config, training, one),
        memory=memory,
        traffic=traffic,
        checkpoints=plan_checkpoints(config, training, update, epochs=totals.epochs, steps=totals.steps),
        samples=found,
        stages=rows,
        evaluation=evaluated,
        duration=plan_duration(
            config,
            times,
            found,
            evaluation_s=evaluated.batch_s,
            validations=totals.validations,
            world_size=world_size,
        )
        if evaluated.batch_s is not None
        else None,
        totals=totals,
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
    parser = argparse.ArgumentParser(prog="python -m trainer.planning.plan", description=__doc__)
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
