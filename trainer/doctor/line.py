"""A line of a report, and how what nodes have become lines: one for all, or one for each node that is at fault."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "skip"]
Facts = Mapping[str, Any]
GB, MB = 1e9, 1e6
RANK: Mapping[Status, int] = {"ok": 0, "skip": 1, "warn": 2, "fail": 3}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a report.

    Attributes:
        status: ``fail`` ends a job before it trains; ``skip`` could not be judged.
        check: What was looked at.
        node: The node that is at fault, or ``all``.
        measured: As it was found.
        expected: What it is held to.
        advice: What to do; empty where all is well.
        passing: Whether trying again later may help.
    """

    status: Status
    check: str
    node: str
    measured: str
    expected: str
    advice: str = ""
    passing: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What one check finds on one node; the larger ``badness``, the worse among those of a status."""

    status: Status
    measured: str
    badness: float = 0.0
    passing: bool = False


def lines(
    check: str, nodes: Sequence[Facts], find: Callable[[Facts], Found | None], *, expected: str, advice: str
) -> Iterator[Line]:
    """What one check makes of all nodes.

    Where none is at fault, one line with the value of the worst; else one for each node that is.

    Args:
        check: What is looked at.
        nodes: Facts of each.
        find: What it finds on a node; None where there is nothing to look at.
        expected: What nodes are held to.
        advice: What to do where one is at fault.
    """
    found = [(str(node["host"]), result) for node in nodes if (result := find(node)) is not None]
    bad = [pair for pair in found if pair[1].status in ("warn", "fail")]
    if bad:
        for host, each in bad:
            yield Line(
                status=each.status, check=check, node=host, measured=each.measured, expected=expected, advice=advice,
                passing=each.passing,
            )  # fmt: skip
    elif found:
        host, worst = max(found, key=lambda pair: (RANK[pair[1].status], pair[1].badness))
        text = worst.measured if len(found) == 1 else f"{worst.measured} ({host})"
        yield Line(status=worst.status, check=check, node="all", measured=text, expected=expected)
