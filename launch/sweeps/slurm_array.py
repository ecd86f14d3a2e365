"""Renders a sweep's agents as an array of jobs for Slurm: each task is an agent of the same sweep, on a node."""

import shlex
from collections.abc import Sequence

from configs.problems import ConfigError, Problem, shown
from configs.schema import Slurm
from launch.job import JobSpec
from launch.slurm.script import check_paths, container, directives, modules, variables


def render(spec: JobSpec, slurm: Slurm, *, agents: int, command: Sequence[str]) -> str:
    """The batch script: a pure function.

    Args:
        spec: Of a trial, its run directory that of the sweep.
        slurm: Settings of jobs.
        agents: Tasks of the array.
        command: Arguments of Python for an agent.

    Raises:
        ConfigError: If the settings are not for a job of one node, or a path cannot be said to Slurm.
    """
    check_paths(spec)
    _check(spec, slurm)
    options = directives(
        spec,
        slurm,
        job_name=f"effnet-{spec.run_id}",
        array=f"0-{agents - 1}",
        dependency=None,
        ntasks_per_node=1,
        cpus_per_task=spec.devices * spec.cpus_per_device,
        # To the script, not to every process: the agent passes it on.
        signal=f"B:USR1@{slurm.signal_before_s}",
        output=f"{spec.run_dir}/launch/slurm-%A_%a.out",
    )
    python = " ".join([*container(spec, slurm), *map(shlex.quote, [spec.python, *command])])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        "# Rendered by effnet. Each task is an agent of one sweep. A task that starts again goes on with its trial.",
        "set -u",
        *modules(slurm),
        *(f"export {name}={shlex.quote(value)}" for name, value in variables(spec, slurm).items()),
        f"cd {shlex.quote(str(spec.work_dir))} || exit 1",
        "",
        f"{python} &",
        "agent=$!",
        "trap 'kill -s USR1 \"$agent\"' USR1",
        "trap 'kill -s TERM \"$agent\"' TERM INT",
        'while kill -0 "$agent" 2> /dev/null; do wait "$agent"; done  # a signal ends one wait',
        'wait "$agent"',
        "code=$?",
        "",
        "# 85: checkpointed after a signal. Slurm itself puts a job back that it preempts.",
        'task="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
        'state=$(squeue --noheader --jobs="$task" --format=%T)',
        f"if [[ $code == 85 && $state == RUNNING && ${{SLURM_RESTART_COUNT:-0}} -lt {spec.max_requeues} ]] &&",
        '    scontrol requeue "$task"; then',
        "    sleep 60  # Slurm ends this script",
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _check(spec: JobSpec, slurm: Slurm) -> None:
    problems = []
    if spec.num_nodes != 1:
        accepted = "1: each agent trains on one node"
        problems.append(Problem(key="trainer.num_nodes", received=shown(spec.num_nodes), accepted=accepted))
    if slurm.elastic:
        problems.append(Problem(key="launch.slurm.elastic", received="true", accepted="false for a sweep"))
    if spec.image is not None and slurm.container == "pyxis":
        accepted = "apptainer for a sweep, whose agents start their trials in the image"
        problems.append(Problem(key="launch.slurm.container", received=shown("pyxis"), accepted=accepted))
    if problems:
        raise ConfigError(problems)
