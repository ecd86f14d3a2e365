"""The hosts of a launch over ssh: from a hostfile, or a list, to names and slots."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.problems import ConfigError, Problem, shown
from configs.schema import Config

LINE = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.:%@-]*)(\s+slots=(?P<slots>[1-9]\d{0,4}))?")
"""Nothing in a name means anything to ssh's options or to a shell."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine.

    Attributes:
        name: As ssh takes it: a name of its configuration, or ``user@address``.
        slots: Most ranks that it may have; None is any number.
    """

    name: str
    slots: int | None


def hosts_of(config: Config) -> tuple[Host, ...]:
    """The hosts, the first of which has the rendezvous.

    Raises:
        ConfigError: If there is no ssh here, the hosts are not as many as there are nodes, one has too few slots, or a
            line says something else.
    """
    ssh = config.launch.ssh
    if not ssh.hosts and ssh.hostfile is None:
        accepted = "hosts, such as [node1, 'node2 slots=8'], or launch.ssh.hostfile"
        raise ConfigError([Problem(key="launch.ssh.hosts", received="[]", accepted=accepted)])
    if shutil.which("ssh") is None:
        accepted = "a machine with OpenSSH's client"
        raise ConfigError([Problem(key="launch ssh", received="no ssh here", accepted=accepted)])
    lines = dict(_lines(ssh.hostfile)) if ssh.hostfile is not None else dict(enumerate(ssh.hosts))
    hosts: list[Host] = []
    problems: list[Problem] = []
    for place, line in lines.items():
        found = LINE.fullmatch(line.strip())
        origin = None if ssh.hostfile is None else f"{ssh.hostfile}:{place}"
        if found is None:
            accepted = "HOST or HOST slots=N"
            problems.append(Problem(key="launch.ssh", received=shown(line), accepted=accepted, origin=origin))
        elif any(host.name == found["name"] for host in hosts):
            problems.append(Problem(key="launch.ssh", received=shown(line), accepted="each host once", origin=origin))
        else:
            hosts.append(Host(name=found["name"], slots=int(found["slots"]) if found["slots"] else None))
    if not problems:
        problems += _misfits(config, hosts)
    if problems:
        raise ConfigError(problems)
    return tuple(hosts)


def _misfits(config: Config, hosts: list[Host]) -> Iterator[Problem]:
    trainer = config.trainer
    if len(hosts) != trainer.num_nodes:
        accepted = f"{len(hosts)}, the hosts of launch.ssh: {', '.join(host.name for host in hosts)}"
        yield Problem(key="trainer.num_nodes", received=str(trainer.num_nodes), accepted=accepted)
    for host in hosts:
        if host.slots is not None and isinstance(trainer.devices, int) and host.slots < trainer.devices:
            accepted = f"at most {host.slots}, the slots of {host.name}"
            yield Problem(key="trainer.devices", received=str(trainer.devices), accepted=accepted)


def _lines(hostfile: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without comments and what is empty."""
    try:
        text = Path(hostfile).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        accepted = f"a file of lines HOST slots=N ({error})"
        raise ConfigError([Problem(key="launch.ssh.hostfile", received=shown(hostfile), accepted=accepted)]) from None
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if said:
            yield number, said
