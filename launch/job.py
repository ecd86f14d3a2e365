"""A job as plain data, made from a configuration alone: what each launcher renders for the engine of its place."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from configs.checks.launch import SECRET_NAME, SECRET_VALUE
from configs.problems import ConfigError, Problem, shown
from configs.run import PREFLIGHT, QUIET, RunDirectory
from configs.schema import Config

PASSED_ON = re.compile(
    r"(NCCL|GLOO|TORCH_NCCL|TORCH|TORCHINDUCTOR|FI|UCX|OMP)_[A-Z0-9_]+"
    r"|WANDB_(BASE_URL|ENTITY|HTTP_TIMEOUT|INIT_TIMEOUT)|HF_(HOME|ENDPOINT|HUB_OFFLINE)"
    r"|AWS_(PROFILE|REGION|DEFAULT_REGION|ENDPOINT_URL|ENDPOINT_URL_S3)|GOOGLE_CLOUD_PROJECT"
    r"|(http|https|no)_proxy|(HTTP|HTTPS|NO)_PROXY"
)
"""Names of variables that a job gets from the shell that submits it."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder that a container sees."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Everything that a launcher needs to know of a job. All paths are absolute, and the same on every node.

    Attributes:
        run_id: Name of the run.
        run_dir: Its directory, on storage that all nodes share.
        code_dir: Snapshot of the code, below ``run_dir``: first on PYTHONPATH of every process.
        work_dir: Where relative paths in the configuration begin.
        python: Interpreter on the nodes.
        command: Arguments of each rank's process, the interpreter first (`launch.rank`).
        environment: Variables that each process gets, none of them secret.
        num_nodes: Machines.
        devices: Devices, and so ranks, of each node.
        gpus: Whether devices are GPUs, not cores.
        cpus_per_device: Cores for each rank with its loaders.
        memory_per_node_gb: Main memory of a node in GiB; None is the engine's default.
        time_limit_minutes: Longest time at a stretch; None is the engine's default.
        image: Container image, or None.
        mounts: Folders that the container sees; none without an image.
        max_requeues: Times that the job may go back into the queue after a checkpoint.
        max_failures: Failures in a row after which it starts again.
    """

    run_id: str
    run_dir: Path
    code_dir: Path
    work_dir: Path
    python: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    num_nodes: int
    devices: int
    gpus: bool
    cpus_per_device: int
    memory_per_node_gb: int | None
    time_limit_minutes: int | None
    image: str | None
    mounts: tuple[Mount, ...]
    max_requeues: int
    max_failures: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.num_nodes * self.devices


def job_spec(config: Config, *, code_dir: Path, work_dir: Path, environment: Mapping[str, str]) -> JobSpec:
    """The job of a configuration: a pure function of its arguments.

    Args:
        config: The run's configuration; ``runs_dir`` may be relative to ``work_dir``.
        code_dir: Snapshot of the code.
        work_dir: Where the user is: relative paths begin here.
        environment: Variables of the shell that submits; only those allowed are kept.

    Raises:
        ConfigError: If the configuration leaves open what a job must say.
    """
    launch, trainer = config.launch, config.trainer
    if not isinstance(trainer.devices, int):
        accepted = "a number: what a node of the cluster has cannot be seen from here"
        raise ConfigError([Problem(key="trainer.devices", received=shown(trainer.devices), accepted=accepted)])
    run_dir = work_dir / RunDirectory.of(config).path
    python = launch.python or ("python3" if launch.image else sys.executable)
    return JobSpec(
        run_id=run_dir.name,
        run_dir=run_dir,
        code_dir=code_dir,
        work_dir=work_dir,
        python=python,
        command=(python, "-m", "launch.rank", str(run_dir)),
        environment=captured_environment(config, environment),
        num_nodes=trainer.num_nodes,
        devices=trainer.devices,
        gpus=trainer.accelerator != "cpu",
        cpus_per_device=launch.cpus_per_device or config.data.num_workers + 1,
        memory_per_node_gb=launch.memory_per_node_gb,
        time_limit_minutes=launch.time_limit_minutes,
        image=launch.image,
        mounts=_mounts(config, run_dir=run_dir, work_dir=work_dir),
        max_requeues=launch.max_requeues,
        max_failures=launch.max_failures,
    )


def with_preflight(spec: JobSpec) -> JobSpec:
    """The same job, whose ranks examine their nodes, in each attempt, before they train."""
    return replace(spec, environment={**spec.environment, PREFLIGHT: "1"})


def with_quiet(spec: JobSpec) -> JobSpec:
    """The same job, whose first rank prints results and errors alone."""
    return replace(spec, environment={**spec.environment, QUIET: "1"})


def captured_environment(config: Config, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for the job: those of this shell that are allowed and hold no secret, then the configuration's."""
    names = [name for name in environment if PASSED_ON.fullmatch(name) or name in config.launch.pass_environment]
    kept = {name: environment[name] for name in sorted(names) if not is_secret(name, environment[name])}
    return kept | dict(sorted(config.launch.environment.items()))


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is not for a file: by its name, or for a password in a URL."""
    return SECRET_NAME.search(name) is not None or SECRET_VALUE.search(value) is not None


def python_environment(spec: JobSpec) -> dict[str, str]:
    """Variables by which every Python process of the job runs the snapshot, whatever folder it is in.

    PYTHONSAFEPATH keeps the current folder, which may be the checkout, off the path.
    """
    return {"PYTHONPATH": str(spec.code_dir), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _mounts(config: Config, *, run_dir: Path, work_dir: Path) -> tuple[Mount, ...]:
    if config.launch.image is None:
        return ()
    own = [work_dir] if run_dir.is_relative_to(work_dir) else [work_dir, run_dir]
    mounts = [Mount(source=str(path), target=str(path)) for path in own]
    for text in config.launch.mounts:
        source, target, *flags = text.split(":")
        mounts.append(Mount(source=source, target=target, read_only=bool(flags)))
    return tuple(mounts)
