"""A run's checkpoints in a remote folder, through fsspec: a copy of those on disk, to go on from on another machine.

A remote checkpoint is whole once its manifest is there, which is written last and removed first.
"""

import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from configs.problems import ConfigError, Problem
from configs.schema import Config
from datamodules.bars import Advance, Bar, no_bar
from trainer.checkpoint_files import MANIFEST, metric_of, step_name, step_of, verify
from trainer.checkpoints import CheckpointDirectory
from trainer.logs import logger
from trainer.retention import Kept, Retention

MB = 10**6
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
_RANDOM = random.SystemRandom()
"""Not Python's global generator: uploads go on while training draws augmentations from it, by seed."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@dataclass(frozen=True)
class RemoteCheckpoints:
    """The folder of one run.

    Attributes:
        url: Its URL, without a slash at the end.
        filesystem: fsspec's, of this process alone.
    """

    url: str
    filesystem: Any = field(repr=False)
    _metrics: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: Config, run_id: str) -> "RemoteCheckpoints | None":
        """The remote folder of a run, if its configuration names one. Nothing is sent.

        Raises:
            ConfigError: If fsspec, as it is installed here, does not know this kind of URL.
        """
        folder = config.checkpoint.remote_dir
        if folder is None:
            return None
        protocol = folder.partition("://")[0]
        try:
            filesystem = _filesystem(protocol)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(protocol)
            accepted = f"pip install 'effnet[{extra}]' for {protocol}://" if extra else str(error)
            raise ConfigError([Problem(key="checkpoint.remote_dir", received=folder, accepted=accepted)]) from None
        return cls(f"{folder.rstrip('/')}/{run_id}", filesystem)

    def named(self, step: int) -> str:
        """URL of the checkpoint of a step."""
        return f"{self.url}/{step_name(step)}"

    def reference(self, step: int, name: str) -> tuple[str, str | None]:
        """URL of a file of a checkpoint, and its entity tag where the store has one.

        Raises:
            OSError: If it is not there.
        """
        found = self.filesystem.info(self._place(step, name))
        etag = found.get("ETag") or found.get("etag")
        return f"{self.named(step)}/{name}", str(etag).strip('"') if etag else None

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, the newest first."""
        return sorted((step for step, names in self._listed().items() if MANIFEST in names), reverse=True)

    def check(self) -> None:
        """Write and remove a file, so that a folder which refuses it is found out before training."""
        probe = f"{self._root}/probe"
        self.filesystem.pipe_file(probe, b"effnet")
        self.filesystem.rm_file(probe)

    def read(self, name: str) -> str | None:
        """A small file beside the checkpoints; None if it is not there."""
        try:
            content: bytes = self.filesystem.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        return content.decode("utf-8")

    def write(self, name: str, text: str) -> None:
        """Replace a small file beside the checkpoints."""
        self.filesystem.pipe_file(f"{self._root}/{name}", text.encode("utf-8"))

    def upload(self, path: Path) -> None:
        """Copy a checkpoint of this machine's, unless it is there; its manifest last.

        Raises:
            OSError: Or whatever fsspec raises, if it cannot be written.
        """
        step = step_of(path)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if MANIFEST in self._listed().get(step, ()):
            if self.manifest(step) == manifest:
                return
            self.filesystem.rm_file(self._place(step, MANIFEST))  # while its files are replaced, it is not whole
        for name, expected in manifest["files"].items():
            self.filesystem.put_file(str(path / name), self._place(step, name))
            size = self.filesystem.info(self._place(step, name))["size"]
            if size != expected["bytes"]:
                raise EOFError(f"{name} has {size} bytes there instead of {expected['bytes']}")
        self.filesystem.put_file(str(path / MANIFEST), self._place(step, MANIFEST))
        logger.debug("uploaded %s", self.named(step))

    def manifest(self, step: int) -> dict[str, Any] | None:
        """The manifest of a checkpoint; None if it cannot be read as one."""
        try:
            found = json.loads(self.filesystem.cat_file(self._place(step, MANIFEST)))
        except ValueError:
            return None
        return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else None

    def download(self, step: int, directory: CheckpointDirectory, *, bar: Bar = no_bar) -> Path | None:
        """Fetch a checkpoint, verify it and give it its name here; None, and the reason logged, if it is damaged.

        How far it is, in MB, is shown on ``bar``.
        """
        manifest, temporary = self.manifest(step), directory.begin(step)
        names = [*manifest["files"], MANIFEST] if manifest is not None else []
        fault = "no readable manifest" if not names else None
        if manifest is not None and manifest.get("step") != step:
            fault = f"its manifest is of step {manifest.get('step')}"
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
            fault = "its manifest names files outside of it"
        wanted = manifest["files"].values() if manifest is not None and fault is None else ()
        sizes = [each.get("bytes") for each in wanted if isinstance(each, dict)]  # verified when it is here
        total = sum(size for size in sizes if isinstance(size, int))
        with bar(f"fetching {step_name(step)} (MB)", total // MB) as advance:
            fetched = _Fetched(advance)
            for name in names if fault is None else ():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.filesystem.get_file(self._place(step, name), str(temporary / name), callback=fetched)
                    fetched.has(sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()))
                except FileNotFoundError:
                    fault = f"{name} is missing"
                    break
        fault = fault or verify(temporary)
        if fault is not None:
            directory.sweep()
            logger.warning("checkpoint %s is passed over: %s", self.named(step), fault)
            return None
        return directory.adopt(step)

    def prune(self, retention: Retention, *, saved: int) -> None:
        """Remove what no rule keeps, and what uploads have left that were cut off; never what was just ``saved``."""
        listed = self._listed()
        whole = [step for step, names in listed.items() if MANIFEST in names]
        kept = [Kept(step, metric_of(self._cached(step), retention.monitor)) for step in whole]
        removed = retention.removable(kept, good=saved, never=(saved,))
        for step in removed | (listed.keys() - set(whole)):
            if step in whole:
                self.filesystem.rm_file(self._place(step, MANIFEST))
            self.filesystem.rm(f"{self._root}/{step_name(step)}", recursive=True)

    @property
    def _root(self) -> str:
        root: str = self.filesystem._strip_protocol(self.url)
        return root

    def _place(self, step: int, name: str) -> str:
        return f"{self._root}/{step_name(step)}/{name}"

    def _listed(self) -> dict[int, set[str]]:
        """Names of the files of each checkpoint, whole or not."""
        try:
            found = self.filesystem.find(self._root)
        except FileNotFoundError:
            return {}
        checkpoints: dict[int, set[str]] = {}
        for place in found:
            folder, _, name = str(place).removeprefix(f"{self._root}/").partition("/")
            if name and re.fullmatch(r"step-\d{9,}", folder):
                checkpoints.setdefault(step_of(Path(folder)), set()).add(name)
        return checkpoints

    def _cached(self, step: int) -> dict[str, Any]:
        """What a manifest says, asked for once: those that are kept for ever become many."""
        if step not in self._metrics:
            self._metrics[step] = {"metrics": (self.manifest(step) or {}).get("metrics")}
        return self._metrics[step]


class _Fetched(Callback):  # type: ignore[misc]
    """Hears from fsspec how many bytes have come, and says each whole MB of them."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance = advance
        self._bytes = 0

    def relative_update(self, inc: int = 1) -> None:
        """So many bytes more."""
        before, self._bytes = self._bytes, self._bytes + inc
        self._advance(self._bytes // MB - before // MB)

    def has(self, count: int) -> None:
        """So many bytes in all, by the end of a file: not all file systems say so themselves."""
        if count > self._bytes:
            self.relative_update(count - self._bytes)


def _filesystem(protocol: str) -> Any:
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        # botocore's own attempts draw from the global generator, and a save that waits too long holds training up.
        once = {"total_max_attempts": 1}
        times = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        options["config_kwargs"] = {"retries": once, **times}
    elif protocol in ("gs", "gcs"):
        import gcsfs.retry

        gcsfs.retry.random = _RANDOM
    elif protocol in ("file", "local"):
        options["auto_mkdir"] = True
    filesystem = fsspec.filesystem(protocol, **options)
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1
    return filesystem
