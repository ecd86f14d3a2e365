"""What each node is held to by itself: GPUs, limits, shared memory, disks, shards. Pure functions."""

from collections.abc import Iterator, Sequence

from configs.schema import Doctor
from trainer.doctor.line import GB, MB, Facts, Found, Line, Status, lines

LEAST_FREE_MEMORY = 0.9


def gpu_lines(nodes: Sequence[Facts], wanted: int | None) -> Iterator[Line]:
    """Number of GPUs, their free memory, their errors."""
    if wanted is not None:

        def count(node: Facts) -> Found:
            found = max(len(node["gpus"]), node.get("devices", 0))  # nvidia-smi is not in all images, and knows no MIG
            return Found("ok" if found >= wanted else "fail", f"{found}", -found)

        advice = "see nvidia-smi and CUDA_VISIBLE_DEVICES there, or set trainer.devices"
        yield from lines("GPUs", nodes, count, expected=f"{wanted}", advice=advice)
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
    yield from lines("GPU memory free", nodes, memory, expected=f"{LEAST_FREE_MEMORY:.0%} or more", advice=advice)
    advice = "drain the node and reset its GPUs; replace the GPU if they come back"
    yield from lines("uncorrected ECC errors", nodes, ecc, expected="0 since boot", advice=advice)


def limit_lines(nodes: Sequence[Facts], settings: Doctor) -> Iterator[Line]:
    """``ulimit -n`` and ``-l``."""

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
    yield from lines("ulimit -n", nodes, files, expected=f"{settings.min_open_files:,} or more", advice=advice)
    advice = "set memlock unlimited in limits.conf, or LimitMEMLOCK=infinity for slurmd or the container"
    yield from lines("ulimit -l", nodes, memory, expected="unlimited, where NCCL uses InfiniBand", advice=advice)


def shared_memory_lines(nodes: Sequence[Facts]) -> Iterator[Line]:
    """Room in /dev/shm for the batches of loaders."""
    need = max((node["needs"]["shm"] for node in nodes if "needs" in node), default=0)

    def find(node: Facts) -> Found:
        if "error" in node["shm"]:
            return Found("fail" if need else "skip", node["shm"]["error"])
        free = node["shm"]["free"]
        return Found("ok" if free >= need else "fail", f"{_size(free)} free", -free)

    advice = "mount a larger /dev/shm (--shm-size, launch.kubernetes.shared_memory_gb), or lower data.prefetch_batches"
    expected = f"{_size(need)} for the loaders' batches" if need else "any"
    yield from lines("/dev/shm", nodes, find, expected=expected, advice=advice)


def disk_lines(nodes: Sequence[Facts], settings: Doctor) -> Iterator[Line]:
    """Room and speed of the run directory and of the cache."""
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
        yield from lines(title, nodes, room, expected=expected, advice=advice)
        advice = f"another disk: set {setting}; a checkpoint waits for this one"
        expected = f"{settings.min_disk_mb_per_s:g} MB/s or more"
        yield from lines(f"{title}, writing", nodes, speed, expected=expected, advice=advice)


def shard_lines(nodes: Sequence[Facts]) -> Iterator[Line]:
    """Whether shards can be read, and fast enough for the devices."""
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
        # A run that has trained at this rate goes on: from caches, of this node or of the kernel, which are passed by.
        slow: Status = "warn" if node["needs"].get("has_run") else "fail"
        return Found("ok" if good else slow, text, -shards["bytes_per_s"])

    advice = "see data.train_shards, and that the server answers from that node, credentials included"
    yield from lines("shard source", measured, source, expected="reachable", advice=advice)
    known = [node for node in measured if "error" not in node["shards"] and node["shards"]["sample_bytes"] is not None]
    expected = "unknown: set doctor.images_per_s_per_device"
    if known and (needs := known[0]["needs"])["images_per_s"] is not None:
        size = known[0]["shards"]["sample_bytes"]
        expected = f"{needs['images_per_s'] * size / MB:.3g} MB/s: {needs['images_per_s']:,.0f} images/s "
        expected += f"({needs['rests_on']}) of {size / 1000:.3g} kB"
    advice = "a nearer or faster source, smaller images (effnet shards build), or data.cache_dir on a fast disk"
    yield from lines("shard reading", measured, rate, expected=expected, advice=advice)


def _size(count: float) -> str:
    """Bytes, as a person reads them."""
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / MB:,.1f} MB"
