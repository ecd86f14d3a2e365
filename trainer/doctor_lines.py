"""From what nodes say of themselves to the lines of a report: what was measured, what is expected, what to do.

Pure functions. Where no node is at fault, a check is one line, with the value of the node that has the worst; else one
line for each node that is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from configs.schema import Doctor
from trainer.link_floors import floors, slow_nodes

Status = Literal["ok", "warn", "fail", "skip"]
Facts = Mapping[str, Any]
GB, MB = 1e9, 1e6
LEAST_FREE_MEMORY = 0.9
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


def judge(nodes: Sequence[Facts], links: Facts | None, *, settings: Doctor, gpus: int | None) -> list[Line]:
    """All lines of a report.

    Args:
        nodes: Of each node what `trainer.node_facts` says, the first node's first, each ``host`` another one.
        links: What `trainer.links` measured; None where one rank is alone.
        settings: What nodes are held to.
        gpus: That each node should have; None if none need be there.
    """
    return [
        *_versions(nodes),
        *_gpus(nodes, gpus),
        *_links(nodes, links, settings),
        *_clocks(nodes, links, settings),
        *_limits(nodes, settings),
        *_shared_memory(nodes),
        *_disks(nodes, settings),
        *_shards(nodes),
    ]


def _lines(
    check: str, nodes: Sequence[Facts], find: Callable[[Facts], Found | None], *, expected: str, advice: str
) -> Iterator[Line]:
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


def _size(count: float) -> str:
    """Bytes, as a person reads them."""
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / MB:,.1f} MB"


def _versions(nodes: Sequence[Facts]) -> Iterator[Line]:
    for name in nodes[0]["versions"]:
        values = [node["versions"].get(name) for node in nodes]
        if all(value is None for value in values):
            continue
        common = max(values, key=values.count)  # of as many, the first node's
        expected = f"{common}, as on {values.count(common)} of {len(nodes)} nodes" if len(nodes) > 1 else "any"

        def find(node: Facts, name: str = name, common: object = common) -> Found:
            value = node["versions"].get(name)
            return Found("ok" if value == common else "fail", str(value or "none"))

        advice = f"install {name} {common} there, or one image for all nodes"
        for line in _lines(f"{name} version", nodes, find, expected=expected, advice=advice):
            yield Line(**{**asdict(line), "measured": str(common)}) if line.status == "ok" else line


def _gpus(nodes: Sequence[Facts], wanted: int | None) -> Iterator[Line]:
    if wanted is not None:

        def count(node: Facts) -> Found:
            return Found("ok" if len(node["gpus"]) >= wanted else "fail", f"{len(node['gpus'])}", -len(node["gpus"]))

        advice = "see nvidia-smi and CUDA_VISIBLE_DEVICES there, or set trainer.devices"
        yield from _lines("GPUs", nodes, count, expected=f"{wanted}", advice=advice)
    if not any(node["gpus"] for node in nodes):
        return

    def memory(node: Facts) -> Found | None:
        if not node["gpus"]:
            return None
        least = min(node["gpus"], key=lambda gpu: gpu["free_mib"] / gpu["total_mib"])
        share = least["free_mib"] / least["total_mib"]
        text = f"GPU {least['index']}: {least['free_mib'] / 1024:.1f} of {least['total_mib'] / 1024:.1f} GiB"
        return Found("ok" if share >= LEAST_FREE_MEMORY else "fail", text, -share)

    def ecc(node: Facts) -> Found | None:
        counted = [gpu for gpu in node["gpus"] if gpu["ecc"] is not None]
        if not counted:
            return Found("skip", "not counted by these GPUs")
        worst = max(counted, key=lambda gpu: gpu["ecc"])
        return Found("fail" if worst["ecc"] else "ok", f"GPU {worst['index']}: {worst['ecc']}", worst["ecc"])

    advice = "end the processes that nvidia-smi shows there, or leave the node out"
    yield from _lines("GPU memory free", nodes, memory, expected=f"{LEAST_FREE_MEMORY:.0%} or more", advice=advice)
    advice = "drain the node and reset its GPUs; replace the GPU if they come back"
    yield from _lines("uncorrected ECC errors", nodes, ecc, expected="0 since boot", advice=advice)


def _links(nodes: Sequence[Facts], links: Facts | None, settings: Doctor) -> Iterator[Line]:
    if links is None:
        yield Line(
            status="skip", check="all-reduce", node="all", measured="not measured",
            expected="2 ranks or more, with the same versions",
        )  # fmt: skip
        return
    between, inside = floors(nodes, settings)
    over = between if len(nodes) > 1 else inside
    slow = slow_nodes(len(nodes), links["pairs"], floor=over.bandwidth)
    hint = ", ".join(str(nodes[node]["host"]) for node in slow) or "no single node is slow: look at the switches"
    yield from _limit_line("all-reduce latency", links["latency_ms"], over.latency_ms, "ms", over.rests_on, most=True)
    text = f"see which node is slow: {hint}" if len(nodes) > 1 else ""
    yield from _limit_line(
        "all-reduce bandwidth", links["bandwidth"] / GB, over.bandwidth / GB, "GB/s", over.rests_on,
        text, most=False,
    )  # fmt: skip
    for node, measured in enumerate(links["inside"] if len(nodes) > 1 else []):
        if measured is not None and measured < inside.bandwidth:
            yield Line(
                status="fail", check="bandwidth inside the node", node=nodes[node]["host"],
                measured=f"{measured / GB:.3g} GB/s", expected=f"{inside.bandwidth / GB:.3g} GB/s ({inside.rests_on})",
                advice="see nvidia-smi topo -m and nvidia-smi nvlink -s there",
            )  # fmt: skip
    for node, (measured, expected) in slow.items():
        yield Line(
            status="fail", check="bandwidth to neighbours", node=nodes[node]["host"],
            measured=f"{measured / GB:.3g} GB/s", expected=f"at least {expected / GB:.3g} GB/s"
            + ("" if expected == over.bandwidth else ", half of what is usual here"),
            advice="see the speed of its link (ethtool, ibstat), its cable and port, or leave the node out",
        )  # fmt: skip
    if len(nodes) > 1 and not slow:
        *pair, worst = min(links["pairs"], key=lambda pair: pair[2])
        good = worst >= over.bandwidth  # else it is that link alone: both have a better one
        yield Line(
            status="ok" if good else "warn", check="bandwidth to neighbours",
            node="all" if good else " and ".join(str(nodes[node]["host"]) for node in pair),
            measured=f"{worst / GB:.3g} GB/s" + (" or more" if good else ""),
            expected=f"at least {over.bandwidth / GB:.3g} GB/s ({over.rests_on})",
            advice="" if good else "see what is between these two: switches, routes",
        )  # fmt: skip


def _limit_line(
    check: str, measured: float, limit: float, unit: str, basis: str, where: str = "", *, most: bool
) -> Iterator[Line]:
    good = measured <= limit if most else measured >= limit
    advice = where or "see that no other job loads this machine or its network (GLOO_SOCKET_IFNAME, NCCL_DEBUG=INFO)"
    yield Line(
        status="ok" if good else "fail", check=check, node="all", measured=f"{measured:.3g} {unit}",
        expected=f"{'at most' if most else 'at least'} {limit:g} {unit} ({basis})", advice="" if good else advice,
    )  # fmt: skip


def _clocks(nodes: Sequence[Facts], links: Facts | None, settings: Doctor) -> Iterator[Line]:
    if links is None or len(nodes) < 2:
        return
    skews = {str(node["host"]): skew for node, skew in zip(nodes, links["clock_skews_s"], strict=True)}

    def find(node: Facts) -> Found:
        skew = skews[str(node["host"])]
        text = f"{abs(skew):.3f} s {'ahead' if skew >= 0 else 'behind'}"
        return Found("fail" if abs(skew) > settings.max_clock_skew_s else "ok", text, abs(skew))

    expected = f"at most {settings.max_clock_skew_s:g} s from {nodes[0]['host']}"
    yield from _lines("clock", nodes[1:], find, expected=expected, advice="run chrony or ntpd there")


def _limits(nodes: Sequence[Facts], settings: Doctor) -> Iterator[Line]:
    def files(node: Facts) -> Found:
        limit = node["limits"]["open files"]
        good = limit is None or limit >= settings.min_open_files
        return Found("ok" if good else "fail", "unlimited" if limit is None else f"{limit:,}", -(limit or 1e18))

    def memory(node: Facts) -> Found:
        limit = node["limits"]["locked memory"]
        text = "unlimited" if limit is None else f"{limit / 2**20:,.0f} MiB"
        wanted = node["infiniband"] and node["backend"] == "nccl"
        return Found("ok" if limit is None else "fail" if wanted else "skip", text, -(limit or 1e18))

    advice = "raise nofile in /etc/security/limits.conf or the unit's LimitNOFILE="
    yield from _lines("ulimit -n", nodes, files, expected=f"{settings.min_open_files:,} or more", advice=advice)
    advice = "set memlock unlimited in limits.conf, or LimitMEMLOCK=infinity for slurmd or the container"
    yield from _lines("ulimit -l", nodes, memory, expected="unlimited, where NCCL uses InfiniBand", advice=advice)


def _shared_memory(nodes: Sequence[Facts]) -> Iterator[Line]:
    need = max((node["needs"]["shm"] for node in nodes if "needs" in node), default=0)

    def find(node: Facts) -> Found:
        if "error" in node["shm"]:
            return Found("fail" if need else "skip", node["shm"]["error"])
        free = node["shm"]["free"]
        return Found("ok" if free >= need else "fail", f"{_size(free)} free", -free)

    advice = "mount a larger /dev/shm (--shm-size, launch.kubernetes.shared_memory_gb), or lower data.prefetch_batches"
    expected = f"{_size(need)} for the loaders' batches" if need else "any"
    yield from _lines("/dev/shm", nodes, find, expected=expected, advice=advice)


def _disks(nodes: Sequence[Facts], settings: Doctor) -> Iterator[Line]:
    for key, title, setting in (("run_dir", "run directory", "runs_dir"), ("cache", "shard cache", "data.cache_dir")):
        need = max((node["needs"]["room"] for node in nodes if node.get(key)), default=0) if key == "run_dir" else 1

        def room(node: Facts, key: str = key, need: int = need) -> Found | None:
            disk = node.get(key)
            if not disk:
                return None
            if "error" in disk:
                return Found("fail", disk["error"])
            return Found("ok" if disk["free"] >= need else "fail", f"{_size(disk['free'])} free", -disk["free"])

        def speed(node: Facts, key: str = key) -> Found | None:
            rate = (node.get(key) or {}).get("bytes_per_s")
            if rate is None:
                return None
            return Found("ok" if rate >= settings.min_disk_mb_per_s * MB else "fail", f"{rate / MB:.3g} MB/s", -rate)

        place = next((node[key]["path"] for node in nodes if node.get(key)), "")
        expected = f"{_size(need)} for checkpoints in {place}" if key == "run_dir" else f"a disk at {place}"
        advice = f"make room there, or set {setting}" + (" or checkpoint.keep_last" if key == "run_dir" else "")
        yield from _lines(title, nodes, room, expected=expected, advice=advice)
        advice = f"another disk: set {setting}; a checkpoint waits for this one"
        expected = f"{settings.min_disk_mb_per_s:g} MB/s or more"
        yield from _lines(f"{title}, writing", nodes, speed, expected=expected, advice=advice)


def _shards(nodes: Sequence[Facts]) -> Iterator[Line]:
    measured = [node for node in nodes if "shards" in node]
    if not measured:
        return

    def source(node: Facts) -> Found:
        shards = node["shards"]
        if shards.get("made_later"):
            return Found("skip", "not made yet: effnet fit does so")
        if "error" in shards:
            return Found("fail", shards["error"], passing=shards["passing"])
        return Found("ok", f"{shards['read_shards']} shard{'s' * (shards['read_shards'] != 1)} read")

    def rate(node: Facts) -> Found | None:
        shards, need = node["shards"], node["needs"]["images_per_s"]
        if "error" in shards:
            return None
        text = f"{shards['bytes_per_s'] / MB:.3g} MB/s"
        if need is None or shards["sample_bytes"] is None:
            return Found("skip", text, -shards["bytes_per_s"])
        good = shards["bytes_per_s"] >= need * shards["sample_bytes"]
        return Found("ok" if good else "fail", text, -shards["bytes_per_s"])

    advice = "see data.train_shards, and that the server answers from that node, credentials included"
    yield from _lines("shard source", measured, source, expected="reachable", advice=advice)
    known = [node for node in measured if "error" not in node["shards"] and node["shards"]["sample_bytes"] is not None]
    expected = "unknown: set doctor.images_per_s_per_device"
    if known and (needs := known[0]["needs"])["images_per_s"] is not None:
        size = known[0]["shards"]["sample_bytes"]
        expected = f"{needs['images_per_s'] * size / MB:.3g} MB/s: {needs['images_per_s']:,.0f} images/s "
        expected += f"({needs['rests_on']}) of {size / 1000:.3g} kB"
    advice = "a nearer or faster source, smaller images (effnet shards build), or data.cache_dir on a fast disk"
    yield from _lines("shard reading", measured, rate, expected=expected, advice=advice)
