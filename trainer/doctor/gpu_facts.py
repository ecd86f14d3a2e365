"""What nvidia-smi says of the GPUs that ranks of this node see: driver, free memory, errors of memory, NVLink."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

QUERY = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "memory.total",
    "memory.free",
    "ecc.errors.uncorrected.volatile.total",
)
TIMEOUT_S = 30.0
NVLINK = re.compile(r"\bNV\d+\b")


def gpu_facts() -> dict[str, Any]:
    """Facts of each GPU, the driver's version (None without one), and whether NVLink joins GPUs."""
    listed = _nvidia_smi(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    gpus = visible(parse(listed), os.environ.get("CUDA_VISIBLE_DEVICES"))
    driver = gpus[0].pop("driver") if gpus else None
    for gpu in gpus[1:]:
        gpu.pop("driver")
    return {
        "gpus": gpus,
        "driver": driver,
        "nvlink": bool(gpus) and NVLINK.search(_nvidia_smi("topo", "-m")) is not None,
    }


def parse(text: str) -> list[dict[str, Any]]:
    """GPUs in the answer to `QUERY`: memory in MiB; ``ecc`` is None where a GPU does not count errors."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(QUERY) or not (words[4].isdecimal() and words[5].isdecimal()):
            continue
        index, uuid, name, driver, total, free, ecc = words
        found.append(
            {
                "index": index,
                "uuid": uuid,
                "name": name,
                "driver": driver,
                "total_mib": int(total),
                "free_mib": int(free),
                "ecc": int(ecc) if ecc.isdecimal() else None,
            }
        )
    return found


def visible(gpus: Sequence[dict[str, Any]], allowed: str | None) -> list[dict[str, Any]]:
    """Those that CUDA_VISIBLE_DEVICES names, by number or by the beginning of their UUID; all where it is not set."""
    if allowed is None:
        return list(gpus)
    names = [name.strip() for name in allowed.split(",")]
    return [
        gpu for gpu in gpus if any(name and (name == gpu["index"] or gpu["uuid"].startswith(name)) for name in names)
    ]


def _nvidia_smi(*arguments: str) -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return done.stdout if done.returncode == 0 else ""
