"""The code of a job, kept in the run directory: editing the checkout does not change a job that waits in a queue.

Only the packages that a process imports are kept, as they are now, changes and new files included; what git ignores and
hidden files, which may hold secrets, are not.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from configs.run import RunDirectory

PACKAGES = ("configs", "datamodules", "launch", "trainer")
ROOT = Path(__file__).parent.parent
"""Where the code that runs lies: a checkout, an earlier snapshot, or site-packages."""
RECORD = "snapshot.json"
"""In a snapshot: the commit that it is of, and the changes beside it."""


def snapshot(run: RunDirectory, root: Path = ROOT) -> Path:
    """Copy the packages below ``root`` to ``RUN/launch/code-<hash>``, unless they are there; returns that folder.

    The hash is of all names and contents, so that equal code has one folder.
    """
    files = code_files(root)
    target = run.launch_dir / f"code-{code_hash(root, files)}"
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for file in files:
            copy = temporary / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, copy)
        (temporary / RECORD).write_text(json.dumps(_git_record(root), indent=2) + "\n", encoding="utf-8")
    except OSError:  # a full disk needs the room
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        temporary.rename(target)
    except OSError:  # another launcher has just made it
        shutil.rmtree(temporary)
        if not target.is_dir():
            raise
    return target


def code_files(root: Path = ROOT) -> list[Path]:
    """Files of the packages below ``root``, relative to it, in order."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    if listed is not None and _is_checkout(root):
        found = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
    else:
        found = {path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*")}
    return sorted(file for file in found if _is_code(file) and (root / file).is_file())


def code_hash(root: Path, files: list[Path]) -> str:
    """The first 12 hex digits of the SHA-256 of all names and contents."""
    digest = hashlib.sha256()
    for file in files:
        content = (root / file).read_bytes()
        digest.update(f"{file.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def _is_code(file: Path) -> bool:
    return file.suffix != ".pyc" and not any(part.startswith(".") or part == "__pycache__" for part in file.parts)


def _is_checkout(root: Path) -> bool:
    top = _git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(os.fsdecode(top.removesuffix(b"\n"))) == root.resolve()


def _git_record(root: Path) -> dict[str, str | None]:
    """What `trainer.environment` says of the code, where no checkout can be asked any more."""
    if (root / RECORD).is_file():  # a snapshot of a snapshot
        record: dict[str, str | None] = json.loads((root / RECORD).read_text(encoding="utf-8"))
        return record
    if not _is_checkout(root):
        return {"git_sha": None, "diff": ""}
    commit, diff = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD", "--", *PACKAGES)
    return {
        "git_sha": commit.decode().strip() if commit else None,
        "diff": (diff or b"").decode(errors="surrogateescape"),
    }


def _git(root: Path, *arguments: str) -> bytes | None:
    """Output of git, or None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
