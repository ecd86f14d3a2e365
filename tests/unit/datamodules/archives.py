"""Archives made by others than the project: GNU tar, Python's tarfile."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.conftest import picture

gnu_tar = shutil.which("tar")
BLOCK = 512


def tar_bytes(members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of files in that order, as Python's tarfile writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, tar_format))
    return path


def write_samples(path: Path, count: int, *, first: int = 0) -> Path:
    """A shard of small pictures with labels 0 to 3."""
    members = []
    for i in range(first, first + count):
        members += [(f"img_{i:05d}.png", picture(i, size=8)), (f"img_{i:05d}.cls", str(i % 4).encode())]
    return write_tar(path, members)


def run_gnu_tar(folder: Path, out: Path, *arguments: str) -> Path:
    """Pack what is in a folder, as `tar -C folder -cf out arguments` does."""
    assert gnu_tar is not None
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run([gnu_tar, "-C", str(folder), "-cf", str(out), *arguments], check=True, env=environment)
    return out


def header(
    name: str = "img.jpg", *, size: bytes = b"00000000005\0", kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A tar header with any size field and a checksum that fits."""
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode()
    block[100:124] = b"0000644\0" + b"0000000\0" + b"0000000\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


END = bytes(2 * BLOCK)
