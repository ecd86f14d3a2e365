"""``python -m trainer doctor``, and what ranks do first in a job with a preflight: nodes are examined and judged."""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore

from configs.exit_codes import EXIT_RETRY
from configs.files import write_atomically
from configs.problems import DataError, UnreachableError
from configs.rank_records import HANG, record_rank_error
from configs.run import RunDirectory
from configs.schema import Config, Doctor
from trainer.doctor.judgement import judge
from trainer.doctor.line import Line
from trainer.doctor.links import Links
from trainer.doctor.node_facts import Facts, node_facts
from trainer.doctor.report import show, summary
from trainer.doctor.roll_call import RollCall
from trainer.processes import Processes

FIRST_S = 1.0
"""So much earlier rank 0 ends where a node will not do: the report is its own, and the others are not at fault."""
ALIKE = ("torch", "CUDA", "NCCL")
"""Versions without which ranks do not understand each other."""


class UnfitError(DataError):
    """A node or the network between nodes will not do, as it is."""


def doctor(folder: RunDirectory, *, log_dir: Path, processes: Processes, console: Console) -> None:
    """Examine this machine, with the configuration in a folder if there is one; the report goes there.

    Raises:
        UnfitError: If something would stop a job.
        UnreachableError: If it is a server that does not answer.
    """
    config = folder.load_config() if folder.config_file.exists() else None
    run = RunDirectory.of(config) if config is not None else None
    examination = Examination(config, run, processes=processes, log_dir=log_dir, report_file=folder.preflight_file)
    examination.run(console)


def preflight(config: Config, run: RunDirectory, *, attempt: int, processes: Processes, console: Console) -> None:
    """Examine all nodes of a job before it trains; the report goes to the run directory.

    Raises:
        UnfitError: If something would stop the job, on all ranks.
        UnreachableError: If it is a server that does not answer.
    """
    log_dir = run.log_dir(attempt)
    Examination(config, run, processes=processes, log_dir=log_dir, report_file=run.preflight_file).run(console)


class Examination:
    """One examination, as one of its ranks sees it."""

    def __init__(
        self, config: Config | None, run: RunDirectory | None, *, processes: Processes, log_dir: Path, report_file: Path
    ) -> None:
        self._config, self._run, self._processes = config, run, processes
        self._settings = config.doctor if config is not None else Doctor()
        self._log_dir, self._report_file = log_dir, report_file
        self._started = time.monotonic()
        self._deadline = self._started + self._settings.timeout_s

    def run(self, console: Console) -> None:
        """Measure, judge on rank 0, and end on all ranks in the same way."""
        with RollCall(
            self._processes, host=socket.gethostname(), timeout_s=self._settings.timeout_s, on_silence=self._give_up
        ) as call:
            call.at("looking at its node")
            own = node_facts(self._config, self._run, self._processes) if self._processes.local_rank == 0 else None
            nodes = self._gathered(call, "facts", own)
            links = self._links(call, nodes)
            verdict: dict[str, Any] = {}
            if self._processes.global_rank == 0:
                lines = judge(nodes, links, settings=self._settings, gpus=_wanted(self._config, nodes))
                self._report(lines, {"nodes": nodes, "links": links}, console)
                bad = [line for line in lines if line.status == "fail"]
                verdict = {
                    "text": f"preflight: {summary(bad)}" if bad else None,
                    "passing": all(line.passing for line in bad),
                }
            verdict = call.from_first("verdict", verdict)
        if verdict["text"] is not None:
            if self._processes.global_rank:
                time.sleep(FIRST_S)
            raise (UnreachableError if verdict["passing"] else UnfitError)(verdict["text"])

    def _links(self, call: RollCall, nodes: list[Facts]) -> dict[str, Any] | None:
        """What joins the ranks, on rank 0; None if one is alone, or they would not understand each other."""
        backend: str | None = None
        if self._processes.global_rank == 0:
            backend = nodes[0]["backend"] if _understand_each_other(nodes) else None
        backend = call.from_first("backend", backend)
        if self._processes.world_size == 1 or backend is None:
            return None
        call.at("all-reduces")
        assert call.store is not None
        if backend == "nccl":
            torch.cuda.set_device(self._processes.local_rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
            store=PrefixStore("group", call.store),
            rank=self._processes.global_rank,
            world_size=self._processes.world_size,
            timeout=timedelta(seconds=max(self._deadline - time.monotonic(), 1.0)),
        )
        try:
            links = Links(self._processes, backend)
            found: dict[str, Any] = {"ranks": self._processes.world_size}
            found |= {"latency_ms": links.latency_ms(), "bandwidth": links.bandwidth()}
            several = self._processes.num_nodes > 1 and self._processes.local_world_size > 1
            inside = links.bandwidth_inside() if several else None
            call.at("exchanges with its neighbours")
            pairs = links.bandwidth_to_neighbours()
            call.at("clocks")
            found["clock_skews_s"] = links.clock_skews_s()
        finally:
            distributed.destroy_process_group()
            if backend == "nccl":
                torch.cuda.empty_cache()
        told = self._gathered(call, "links", {"inside": inside, "pairs": pairs})
        return {**found, "inside": [each["inside"] for each in told], "pairs": _merged(told)}

    def _gathered(self, call: RollCall, name: str, own: Any) -> list[Any]:
        """What the first rank of each node says, on rank 0; nothing elsewhere."""
        size = self._processes.local_world_size
        if self._processes.world_size == 1:
            return _named_apart([own])
        if self._processes.local_rank == 0:
            call.say(f"{name}/{self._processes.global_rank // size}", own)
        if self._processes.global_rank != 0:
            return []
        return _named_apart([call.hear(f"{name}/{node}") for node in range(self._processes.num_nodes)])

    def _give_up(self, silent: Mapping[int, str]) -> None:
        """The time is over: name who is silent, and end this process, whose main thread waits for them."""
        size = self._processes.local_world_size
        known = {f"rank {rank} (node {rank // size})": said for rank, said in silent.items()}
        who = "; ".join(f"{name}: {said}" for name, said in known.items())
        reason = f"no answer within doctor.timeout_s = {self._settings.timeout_s:g} s: {who}"
        if self._processes.global_rank == 0:
            advice = "see that node and its log, or raise doctor.timeout_s"
            lines = [
                Line(
                    status="fail", check="answer", node=name, measured=said, expected="one", advice=advice, passing=True
                )
                for name, said in known.items()
            ]
            self._report(lines, {}, None)
        record_rank_error(self._log_dir, self._processes.global_rank, code=EXIT_RETRY, reason=reason, error=HANG)
        sys.stderr.write(f"{reason}\n")
        sys.stderr.flush()
        os._exit(EXIT_RETRY)

    def _report(self, lines: list[Line], facts: Mapping[str, Any], console: Console | None) -> None:
        """Write and show it. A run directory that cannot be written is one of the lines."""
        content: dict[str, Any] = {"time": time.time(), "ok": not any(line.status == "fail" for line in lines)}
        content |= {"took_s": time.monotonic() - self._started}
        content |= {"lines": [line.as_dict() for line in lines], **facts}
        try:
            write_atomically(self._report_file, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            sys.stderr.write(f"{self._report_file}: {error}\n")
        show(lines, console)


def _wanted(config: Config | None, nodes: list[Facts]) -> int | None:
    """GPUs that each node should have; None if none need be there."""
    if config is None or config.trainer.accelerator == "cpu":
        return None
    if config.trainer.accelerator == "auto" and all(node["backend"] == "gloo" for node in nodes):
        return None
    return config.trainer.devices if isinstance(config.trainer.devices, int) else 1


def _understand_each_other(nodes: list[Facts]) -> bool:
    said = [(node["backend"], *(node["versions"][name] for name in ALIKE)) for node in nodes]
    return len(set(said)) == 1


def _named_apart(nodes: list[Any]) -> list[Any]:
    """With the node's number where several have one name."""
    hosts = [node.get("host") for node in nodes]
    return [
        {**node, "host": f"{host} (node {number})"} if host is not None and hosts.count(host) > 1 else node
        for number, (node, host) in enumerate(zip(nodes, hosts, strict=True))
    ]


def _merged(told: list[dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Each pair once, as the slower of its nodes has measured it."""
    pairs: dict[tuple[int, int], float] = {}
    for first, second, rate in (pair for each in told for pair in each["pairs"]):
        pairs[first, second] = min(rate, pairs.get((first, second), rate))
    return [(*pair, rate) for pair, rate in pairs.items()]
