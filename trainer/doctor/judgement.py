"""From what nodes say of themselves to the lines of a report: what was measured, what is expected, what to do."""

from collections.abc import Sequence

from configs.schema import Doctor
from trainer.doctor.cluster_checks import clock_lines, link_lines, version_lines
from trainer.doctor.line import Facts, Line
from trainer.doctor.node_checks import disk_lines, gpu_lines, limit_lines, shard_lines, shared_memory_lines


def judge(nodes: Sequence[Facts], links: Facts | None, *, settings: Doctor, gpus: int | None) -> list[Line]:
    """All lines of a report.

    Args:
        nodes: Of each node what `trainer.doctor.node_facts` says, the first node's first, each ``host`` another one.
        links: What `trainer.doctor.links` measured; None where one rank is alone.
        settings: What nodes are held to.
        gpus: That each node should have; None if none need be there.
    """
    return [
        *version_lines(nodes),
        *gpu_lines(nodes, gpus),
        *link_lines(nodes, links, settings),
        *clock_lines(nodes, links, settings),
        *limit_lines(nodes, settings),
        *shared_memory_lines(nodes),
        *disk_lines(nodes, settings),
        *shard_lines(nodes),
    ]
