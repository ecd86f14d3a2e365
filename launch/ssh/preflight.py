"""What is seen to before ranks start over ssh: each host is asked, and one that would not train is refused by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.problems import ConfigError, Problem, shown
from configs.schema import Config
from launch.job import JobSpec
from launch.snapshot import code_files, code_hash
from launch.ssh.session import Session, Sessions

ANSWER_S = 120.0
"""Longest time in which a host logs in, starts Python from shared storage, and says what it is."""
NETWORK_S = 30.0
MAX_SKEW_S = 5.0
"""Hosts' clocks tell which rank failed first."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where ranks meet.

    Attributes:
        address: Of the first host, as the others reach it.
        port: Of the rendezvous there.
        nics: Each host's interface to the first one, and its own address there.
    """

    address: str
    port: int
    nics: Mapping[Session, tuple[str | None, str]]


def preflight(sessions: Sessions, config: Config, spec: JobSpec, *, token: str, token_file: str) -> Meeting:
    """Ask all hosts at once, then have them reach the first; returns where ranks meet.

    Raises:
        ConfigError: If a host would not train, with all that is wrong with each.
    """
    ssh = config.launch.ssh
    question = {"token_file": token_file, "work_dir": str(spec.work_dir), "lease_s": ssh.lost_after_s}
    sessions.say("ask", **question)
    answers = sessions.answers(sessions.all, "facts", within_s=ANSWER_S)
    problems = [_silent(session) for session in sessions.all if session not in answers]
    expected = {"code_hash": code_hash(spec.code_dir, code_files(spec.code_dir)), "token": token}
    known = {session.host.name: facts for session, facts in answers.items()}
    problems += problems_of(known, expected=expected, spec=spec, accelerator=config.trainer.accelerator)
    if problems:
        raise ConfigError(problems)
    return _meeting(sessions, config, token, str(answers[sessions.all[0]]["address"]))


def problems_of(
    hosts: Mapping[str, Mapping[str, Any]], *, expected: Mapping[str, str], spec: JobSpec, accelerator: str
) -> Iterator[Problem]:
    """What keeps hosts from training, by what they say (`launch.ssh.facts`).

    Args:
        hosts: What each says, by name, the first host's first.
        expected: Hash of the code, and the token that was written to the run directory.
        spec: The job.
        accelerator: ``trainer.accelerator``.
    """
    first = next(iter(hosts.values()), {})
    with_gpus = [name for name, facts in hosts.items() if facts["gpus"]]
    for name, facts in hosts.items():
        if facts["code_hash"] != expected["code_hash"]:
            received = f"code {facts['code_hash']} in {facts['code']}"
            accepted = f"code {expected['code_hash']} in {spec.code_dir}, as here"
            yield Problem(key=name, received=received, accepted=accepted)
        if facts["token"] != expected["token"]:
            received = "another folder" if facts["token"] is not None else "nothing that was written here just now"
            accepted = f"{spec.run_dir} on storage that all hosts and this machine share"
            yield Problem(key=name, received=received, accepted=accepted)
        elif not facts["may_write"]:
            yield Problem(key=name, received="no right to write", accepted=f"one to write in {spec.run_dir}")
        if not facts["has_work_dir"]:
            accepted = f"{spec.work_dir}, where relative paths begin"
            yield Problem(key=name, received="no such folder", accepted=accepted)
        for package in ("python", "torch"):
            if facts[package] != first[package]:
                received = f"{package} {facts[package]}"
                accepted = f"{package} {first[package]}, as on {next(iter(hosts))}"
                yield Problem(key=name, received=received, accepted=accepted)
        if first["torch"] is None and facts is first:
            yield Problem(key=name, received="no torch", accepted=f"one in {spec.python}, or another launch.python")
        if accelerator != "cpu" and (with_gpus or accelerator == "cuda"):
            yield from _gpu_problems(name, facts, spec)
        skew_s = facts["time"] - facts["received"]  # but for what the answer took, a fraction of a second
        if abs(skew_s) > MAX_SKEW_S:
            received = f"a clock {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
            yield Problem(key=name, received=received, accepted=f"at most {MAX_SKEW_S:g} s: run chrony or ntpd")


def _gpu_problems(name: str, facts: Mapping[str, Any], spec: JobSpec) -> Iterator[Problem]:
    if facts["gpus"] < spec.devices:
        received = f"{facts['gpus']} GPUs"
        yield Problem(key=name, received=received, accepted=f"trainer.devices = {spec.devices} or more")
    elif facts["busy_gpus"] and len(facts["busy_gpus"]) > facts["gpus"] - spec.devices:
        busy = ", ".join(f"GPU {gpu} by process {process}" for gpu, process in facts["busy_gpus"].items())
        yield Problem(key=name, received=f"in use: {busy}", accepted=f"{spec.devices} free GPUs")


def _meeting(sessions: Sessions, config: Config, token: str, reached_by: str) -> Meeting:
    ssh, first, others = config.launch.ssh, sessions.all[0], sessions.all[1:]
    address = ssh.master_addr or reached_by
    first.say("listen", address=address, port=ssh.master_port or 0, token=token)
    place = sessions.answers([first], "reached", within_s=NETWORK_S).get(first)
    if place is None or "error" in place or place["nic"] is None:
        said = (place or {}).get("error") or ("no interface with that address" if place else first.last_words())
        port = f":{ssh.master_port}" if ssh.master_port is not None else ""
        received = f"{address}{port}: {said}"
        accepted = "launch.ssh.master_addr and master_port that are its own, and free"
        raise ConfigError([Problem(key=first.host.name, received=received, accepted=accepted)])
    for session in others:
        session.say("reach", address=address, port=place["port"])
    answers = sessions.answers(others, "reached", within_s=NETWORK_S)
    problems = []
    for session in others:
        found = answers.get(session, {"error": "no answer"})
        if found.get("token") != token:
            received = f"{address}:{place['port']}: {found.get('error', 'something else listens there')}"
            accepted = f"a way to {first.host.name} at launch.ssh.master_addr, and through its firewall"
            problems.append(Problem(key=session.host.name, received=received, accepted=accepted))
    if problems:
        raise ConfigError(problems)
    nics = {session: (found["nic"], str(found["address"])) for session, found in answers.items()}
    return Meeting(address=address, port=place["port"], nics={first: (place["nic"], address), **nics})


def _silent(session: Session) -> Problem:
    received = session.last_words() if session.closed else f"no answer in {ANSWER_S:g} s"
    accepted = f"a host that ssh reaches without a question (ssh -o BatchMode=yes {session.host.name} true), and whose "
    accepted += "Python finds the code in the run directory, on storage that all hosts share"
    return Problem(key=session.host.name, received=shown(received), accepted=accepted)
