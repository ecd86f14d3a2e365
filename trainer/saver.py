"""Writing checkpoints: in one thread, one at a time, each tried a few times, and what came of it kept for who asks.

Lives on rank 0. Knows nothing of training: when to save, and what, is trainer/checkpointing.py's.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from trainer.checkpoint_files import verify
from trainer.checkpoints import CheckpointDirectory
from trainer.logs import logger
from trainer.remote_checkpoints import RemoteCheckpoints
from trainer.retention import Retention

ATTEMPTS = 3
FIRST_PAUSE_S = 1.0
"""Before the second attempt; twice that before the third. A preempted job has half a minute in all."""
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a save.

    Attributes:
        step: Optimizer steps done at the save.
        path: The checkpoint, if it is on this machine's disk.
        error: Why the save failed; None if it did not.
        seconds: From its beginning to the end of its upload.
    """

    step: int
    path: Path | None = None
    error: str | None = None
    seconds: float = 0.0


class Saver:
    """Saves, uploads and prunes in a thread of its own, so that nothing of it runs beside another part of it."""

    def __init__(
        self,
        directory: CheckpointDirectory,
        retention: Retention,
        remote: RemoteCheckpoints | None = None,
        *,
        saved: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Begin nothing yet.

        Args:
            directory: Where to.
            retention: What is kept.
            remote: Where to as well.
            saved: Called in the saver's thread with each checkpoint that is where it should be, before the next save
                can remove it. It must not raise.
        """
        self._directory = directory
        self._retention = retention
        self._remote = remote
        self._told = saved
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[Result] | None = None
        self._results: list[Result] = []

    def save(self, step: int, manifest: dict[str, Any], write: Callable[[Path], None] | None) -> None:
        """Begin a save, after the one before it has ended.

        Args:
            step: Optimizer steps done.
            manifest: What the manifest says beside the files.
            write: Writes the content to the directory that it is given, which is empty, in this saver's thread; None
                where the content is in the temporary directory already.
        """
        self._begin(lambda: self._saved(step, manifest, write))

    def upload(self, step: int, path: Path) -> None:
        """Begin to upload a checkpoint of an earlier attempt, if the remote folder lacks it."""
        self._begin(lambda: self._uploaded(Result(step=step, path=path)))

    def fail(self, step: int, error: str) -> None:
        """Count a save as failed that has not come as far as to be begun."""
        self._results.append(Result(step=step, error=error))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the save that is under way, if there is one; returns whether none is any more."""
        if self._running is not None:
            try:
                result = self._running.result(timeout_s)
            except TimeoutError:
                return False
            self._results.append(result)
            self._running = None
        return True

    def results(self) -> list[Result]:
        """What came of the saves that have ended since this was called last, the oldest first. Does not wait."""
        if self._running is not None and self._running.done():
            self.wait()
        results, self._results = self._results, []
        return results

    def _begin(self, work: Callable[[], Result]) -> None:
        def timed() -> Result:
            begun = time.monotonic()
            result = work()
            return replace(result, seconds=time.monotonic() - begun)

        self.wait()
        self._running = self._thread.submit(timed)

    def _saved(self, step: int, manifest: dict[str, Any], write: Callable[[Path], None] | None) -> Result:
        try:
            path = _retried(f"checkpoint of step {step}", lambda: self._write(step, manifest, write))
        except Exception as error:  # the training that goes on is worth more, whatever it is
            self._directory.sweep()
            return Result(step=step, error=f"{self._directory.named(step)}: {reason(error)}")
        try:
            self._directory.prune(self._retention, saved=path)
        except OSError as error:
            logger.warning("checkpoints that are no longer needed were not removed: %s", error)
        return self._uploaded(Result(step=step, path=path))

    def _write(self, step: int, manifest: dict[str, Any], write: Callable[[Path], None] | None) -> Path:
        final = self._directory.named(step)
        if final.exists() and verify(final) is None:  # all but the last move of an attempt before this one
            return self._directory.point(step)
        begun = time.monotonic()
        if write is not None:
            write(self._directory.begin(step))
        return self._directory.commit(step, manifest={**manifest, "write_s": round(time.monotonic() - begun, 3)})

    def _uploaded(self, result: Result) -> Result:
        assert result.path is not None
        remote, path = self._remote, result.path
        if remote is None:
            self._told(path)
            return result
        try:
            _retried(f"upload of step {result.step}", lambda: remote.upload(path))
        except Exception as error:
            return replace(result, error=f"{remote.named(result.step)}: {reason(error)}")
        self._told(path)
        try:
            remote.prune(self._retention, saved=result.step)
        except Exception as error:
            logger.warning("remote checkpoints that are no longer needed were not removed: %s", reason(error))
        return result


def reason(error: BaseException) -> str:
    """An error in a line; the system's own, where PyTorch's writer has put one of its own on top."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    shown = error if inner is None else inner
    return f"{type(shown).__name__}: {shown}".partition("\n")[0].rstrip(": ")


def _retried(what: str, attempt: Callable[[], Value]) -> Value:
    for number in range(1, ATTEMPTS):
        try:
            return attempt()
        except Exception as error:
            pause_s = FIRST_PAUSE_S * 2 ** (number - 1)
            again = f"attempt {number} of {ATTEMPTS} failed, again in {pause_s:g} s"
            logger.warning("%s: %s: %s", what, again, reason(error))
            time.sleep(pause_s)
    return attempt()
