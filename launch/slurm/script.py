"""Renders a job as a batch script for Slurm.

Every value of the configuration is quoted: for the shell by shlex, for sbatch's own reading of its directives as below.
"""

import hashlib
import shlex
from collections.abc import Iterator

from configs.problems import ConfigError, Problem, shown
from configs.run import GRACE
from configs.schema import Slurm
from launch.job import JobSpec, python_environment

WAIT_S = 300
"""Longest that rank 0 may take at its end (curves, W&B) after the others are done."""
TORCHRUN_RESTARTS = 3
KILL_WAIT_S = 30
"""From a signal that no time limit has caused to the kill: Slurm's default of KillWait."""


def render(spec: JobSpec, slurm: Slurm) -> str:
    """The batch script of a job: a pure function.

    Raises:
        ConfigError: If a path cannot be said to Slurm or to the container's runtime.
    """
    check_paths(spec)
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in directives(spec, slurm)),
        "",
        f"# Rendered by effnet. All that the job does is in {_comment(str(spec.run_dir))}",
        "set -u -o pipefail",
        f"run={_quoted(str(spec.run_dir))}",
        *modules(slurm),
        *(f"export {name}={_quoted(value)}" for name, value in variables(spec, slurm).items()),
        f"cd {_quoted(str(spec.work_dir))} || exit 1",
        "",
        "# Signals go to the tasks too, which checkpoint. The script stays to say how they ended.",
        "trap : TERM INT USR1",
        "",
        "# Python on the first node, where this script runs.",
        "first_node() {",
        *_continued(_on_first_node(spec, slurm)),
        "}",
        "",
        "# Number of this attempt, and a free port.",
        'begun=$(first_node -m launch.attempt begin "$run") || exit',
        'export EFFNET_ATTEMPT="${begun% *}" MASTER_PORT="${begun#* }"',
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_ADDR",
        "",
        *_srun(spec, slurm),
        "status=$?",
        "",
        "# 0 done, 85 checkpointed after a signal, 93 do not retry, else a failure.",
        'next=$(first_node -m launch.attempt end "$run" \\',
        '    --attempt="$EFFNET_ATTEMPT" --status="$status" --requeues="${SLURM_RESTART_COUNT:-0}" \\',
        f"    --max-requeues={spec.max_requeues} --max-failures={spec.max_failures})",
        "code=$?",
        "# Slurm itself puts a job back that it preempts, and one that was cancelled has another state too.",
        'state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)',
        'if [[ $next == requeue && $state == RUNNING ]] && scontrol requeue "$SLURM_JOB_ID"; then',
        "    sleep 60  # Slurm ends this script",
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def job_name(spec: JobSpec) -> str:
    """The same for all jobs of a run directory, and only these: `singleton` lets one of them run at a time."""
    return f"effnet-{spec.run_id}-{hashlib.sha256(str(spec.run_dir).encode()).hexdigest()[:6]}"


def directives(spec: JobSpec, slurm: Slurm, **instead: object) -> Iterator[str]:
    """Options of sbatch, each quoted; ``instead`` are others of ours, with underscores for hyphens."""
    tasks, cores = (1, spec.devices * spec.cpus_per_device) if slurm.elastic else (spec.devices, spec.cpus_per_device)
    options: dict[str, object] = {
        "job-name": job_name(spec),
        "dependency": "singleton",
        "nodes": spec.num_nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cores,
        "gres": f"gpu:{spec.devices}" if spec.gpus else None,
        "mem": f"{spec.memory_per_node_gb}G" if spec.memory_per_node_gb is not None else None,
        "time": spec.time_limit_minutes,
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "signal": f"USR1@{slurm.signal_before_s}",
        "requeue": True,
        "no-kill": slurm.elastic,
        "open-mode": "append",
        "output": f"{spec.run_dir}/launch/slurm-%j.out",
        "export": "NONE",
        **{name.replace("_", "-"): value for name, value in instead.items()},
        **slurm.options,
    }
    for name, value in options.items():
        if value is True:
            yield f"--{name}"
        elif value is not None and value is not False:
            yield f"--{name}={_directive_value(str(value))}"


def _directive_value(text: str) -> str:
    """Quoted as sbatch reads directives: in double quotes, where a backslash takes the next character as it is."""
    if text and all(character.isascii() and (character.isalnum() or character in "_-./:@,%") for character in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def variables(spec: JobSpec, slurm: Slurm) -> dict[str, str]:
    """What the processes of a job get; whoever knows how long the cluster waits can say so in launch.environment."""
    return {GRACE: str(min(slurm.signal_before_s, KILL_WAIT_S)), **spec.environment, **python_environment(spec)}


def modules(slurm: Slurm) -> list[str]:
    """Commands that load the environment modules."""
    if not slurm.modules:
        return []
    return [
        "type module > /dev/null 2>&1 || source /etc/profile",
        *(f"module load {_quoted(name)} || exit 1" for name in slurm.modules),
    ]


def _srun(spec: JobSpec, slurm: Slurm) -> list[str]:
    """The step that trains, one argument or two a line."""
    if slurm.elastic:
        least = slurm.min_nodes or spec.num_nodes
        cores = spec.devices * spec.cpus_per_device
        torchrun = [
            *container(spec, slurm),
            f"{_quoted(spec.python)} -m torch.distributed.run",
            f"--nnodes={least}:{spec.num_nodes} --nproc-per-node={spec.devices} --max-restarts={TORCHRUN_RESTARTS}",
            '--rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
            '--rdzv-id="$SLURM_JOB_ID-$EFFNET_ATTEMPT"',
            f"-m {_arguments(spec)}",
        ]
        return [
            "# A signal would end torchrun, which leaves those that it ignores to the ranks.",
            f"srun --export=ALL --ntasks-per-node=1 --cpus-per-task={cores} --no-kill --kill-on-bad-exit=0 \\",
            *_pyxis(spec, slurm),
            '    bash -c \'trap "" USR1; exec "$@"\' bash \\',
            *_continued(torchrun),
        ]
    command = [*container(spec, slurm), f"{_quoted(spec.python)} -m {_arguments(spec)}"]
    return [
        f"srun --export=ALL --ntasks-per-node={spec.devices} --cpus-per-task={spec.cpus_per_device} \\",
        f"    --distribution=block --kill-on-bad-exit=1 --wait={WAIT_S} --label \\",
        *_pyxis(spec, slurm),
        *_continued(command),
    ]


def _arguments(spec: JobSpec) -> str:
    """Module and arguments of a rank's process."""
    return " ".join(_quoted(argument) for argument in spec.command[2:])


def _on_first_node(spec: JobSpec, slurm: Slurm) -> list[str]:
    """Python with the function's arguments, for what the script itself does: in the image, where there is one."""
    words = container(spec, slurm)
    if spec.image is not None and slurm.container == "pyxis":
        words = ["srun --export=ALL --nodes=1 --ntasks=1 --relative=0", *_pyxis_options(spec)]
    return [*words, f'{_quoted(spec.python)} "$@"']


def container(spec: JobSpec, slurm: Slurm) -> list[str]:
    """Words before a command that runs it in Apptainer."""
    if spec.image is None or slurm.container != "apptainer":
        return []
    gpus = " --nv" if spec.gpus else ""
    binds = " ".join(f"--bind={_quoted(bind)}" for bind in _mounts(spec))
    return [f"apptainer exec{gpus} {binds} --pwd={_quoted(str(spec.work_dir))} {_quoted(spec.image)}"]


def _pyxis(spec: JobSpec, slurm: Slurm) -> list[str]:
    if spec.image is None or slurm.container != "pyxis":
        return []
    return [f"    {option} \\" for option in _pyxis_options(spec)]


def _pyxis_options(spec: JobSpec) -> list[str]:
    return [
        f"--container-image={_quoted(str(spec.image))}",
        f"--container-mounts={_quoted(','.join(_mounts(spec)))}",
        f"--container-workdir={_quoted(str(spec.work_dir))}",
        f"--container-env={','.join(python_environment(spec))}",
    ]


def _mounts(spec: JobSpec) -> list[str]:
    return [f"{mount.source}:{mount.target}{':ro' if mount.read_only else ''}" for mount in spec.mounts]


def _continued(lines: list[str]) -> list[str]:
    """Lines of one command."""
    return [*(f"    {line} \\" for line in lines[:-1]), f"    {lines[-1]}"]


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _comment(text: str) -> str:
    """On one line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def check_paths(spec: JobSpec) -> None:
    """See that the run's path can be said.

    Raises:
        ConfigError: If not.
    """
    path = str(spec.run_dir)
    if not path.isprintable() or {"\\", "%"} & {*path}:
        accepted = "a path without backslash, % and control characters, which mean something to Slurm's --output"
        raise ConfigError([Problem(key="runs_dir", received=shown(path), accepted=accepted)])
    for mount in spec.mounts:
        if set(":,") & {*mount.source, *mount.target}:
            received, accepted = shown(mount.source), "folders without : and , in their path: a container mounts them"
            raise ConfigError([Problem(key="launch.mounts", received=received, accepted=accepted)])
