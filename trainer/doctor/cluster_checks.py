"""What nodes are held to together: versions alike, all-reduces, links, clocks. Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from configs.schema import Doctor
from trainer.doctor.line import GB, Facts, Found, Line, lines
from trainer.doctor.link_floors import floors, slow_nodes


def version_lines(nodes: Sequence[Facts]) -> Iterator[Line]:
    """Each version that nodes do not have in common, with the nodes that differ from most."""
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
        for line in lines(f"{name} version", nodes, find, expected=expected, advice=advice):
            yield replace(line, measured=str(common)) if line.status == "ok" else line


def link_lines(nodes: Sequence[Facts], links: Facts | None, settings: Doctor) -> Iterator[Line]:
    """All-reduces over all ranks and inside nodes, and the nodes that are slow with both neighbours."""
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


def clock_lines(nodes: Sequence[Facts], links: Facts | None, settings: Doctor) -> Iterator[Line]:
    """Clocks that differ from the first node's."""
    if links is None or len(nodes) < 2:
        return
    skews = {str(node["host"]): skew for node, skew in zip(nodes, links["clock_skews_s"], strict=True)}

    def find(node: Facts) -> Found:
        skew = skews[str(node["host"])]
        text = f"{abs(skew):.3f} s {'ahead' if skew >= 0 else 'behind'}"
        return Found("fail" if abs(skew) > settings.max_clock_skew_s else "ok", text, abs(skew))

    expected = f"at most {settings.max_clock_skew_s:g} s from {nodes[0]['host']}"
    yield from lines("clock", nodes[1:], find, expected=expected, advice="run chrony or ntpd there")
