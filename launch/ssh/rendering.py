"""Renders a job for ssh: what is run on each host, as data that no shell reads.

The one text for a shell is the command that ssh hands to a host's: the interpreter and two paths, quoted. All else goes
through the session's standard input (`launch.ssh.host`).
"""

import json
import shlex
from collections.abc import Sequence

from configs.problems import ConfigError, Problem, shown
from configs.schema import Ssh
from launch.job import JobSpec, python_environment
from launch.ssh.hostfile import Host

CONNECT_TIMEOUT_S = 15
ALIVE_COUNT = 3
"""Questions that a host may leave without an answer."""


def render(spec: JobSpec, ssh: Ssh, hosts: Sequence[Host]) -> str:
    """The artefact: JSON of all that is run, in capitals what is known only once the hosts have been asked.

    Raises:
        ConfigError: If the job wants what ssh does not do.
    """
    if spec.image is not None:
        accepted = "null: launch ssh runs on the hosts themselves"
        raise ConfigError([Problem(key="launch.image", received=shown(spec.image), accepted=accepted)])
    plan = {
        "hosts": [
            {
                "host": host.name,
                "ssh": ssh_command(host, spec, ssh),
                "command": rank_command(
                    spec,
                    attempt="ATTEMPT",
                    log_dir=f"{spec.run_dir}/logs/attempt-ATTEMPT",
                    master=ssh.master_addr or "ADDRESS_OF_FIRST_HOST",
                    port=ssh.master_port or "FREE_PORT",
                    local_address="ADDRESS_TOWARDS_FIRST_HOST",
                    is_first=host == hosts[0],
                ),
            }
            for host in hosts
        ],
        "work_dir": str(spec.work_dir),
        "environment": variables(spec),
    }
    return json.dumps(plan, indent=2, ensure_ascii=False) + "\n"


def ssh_command(host: Host, spec: JobSpec, ssh: Ssh) -> list[str]:
    """Arguments of ssh for one host: asks nothing, trusts known host keys alone, notices a host that is gone."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": CONNECT_TIMEOUT_S,
        "ServerAliveInterval": max(ssh.lost_after_s // ALIVE_COUNT, 1),
        "ServerAliveCountMax": ALIVE_COUNT,
        "ControlMaster": "no",
        "ControlPath": "none",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
    }
    words = ["ssh", "-T", *(["-F", ssh.config_file] if ssh.config_file is not None else [])]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    path = python_environment(spec)
    remote = ["env", *(f"{name}={value}" for name, value in path.items()), spec.python, "-m", "launch.ssh.host"]
    return [*words, "--", host.name, f"exec {shlex.join(remote)}"]


def rank_command(
    spec: JobSpec,
    *,
    attempt: int | str,
    log_dir: str,
    master: str,
    port: int | str,
    local_address: str,
    is_first: bool,
) -> list[str]:
    """What a host runs: torchrun, or the trainer itself where there is one rank in all.

    Args:
        spec: The job.
        attempt: Its number.
        log_dir: Folder of the attempt's logs.
        master: Address of the first host, which has the rendezvous.
        port: Of the rendezvous.
        local_address: The host's own address, by which the others reach it.
        is_first: Whether this is the first host.
    """
    trainer = ["trainer", "fit", str(spec.run_dir), f"--log-dir={log_dir}", f"--attempt={attempt}"]
    if spec.world_size == 1:
        return [spec.python, "-m", *trainer]
    torchrun = [
        f"--nnodes={spec.num_nodes}",
        f"--nproc-per-node={spec.devices}",
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={master}:{port}",
        f"--rdzv-id={spec.run_id}-{attempt}",
        f"--rdzv-conf=is_host={'true' if is_first else 'false'}",
        f"--local-addr={local_address}",
    ]
    return [spec.python, "-m", "trainer.agent", *torchrun, "-m", *trainer]


def variables(spec: JobSpec) -> dict[str, str]:
    """Variables of the ranks, none of them secret."""
    return {**spec.environment, **python_environment(spec)}
