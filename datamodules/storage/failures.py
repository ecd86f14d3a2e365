"""Trying again where a server fails, and which failures are worth it."""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from configs.problems import DataError, UnreachableError
from datamodules.storage.locations import Url

logger = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_RANDOM = random.SystemRandom()
"""Not Python's global generator: downloads go on while other threads draw augmentations from it, by seed."""
_PASSING_STATUS = (408, 425, 429)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""botocore's, which is not here without the s3 extra."""
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
Result = TypeVar("Result")


def retrying(url: Url, attempt: Callable[[], Result], *, attempts: int) -> Result:
    """What ``attempt`` returns, in the end.

    Raises:
        DataError: If what is asked for is not there, or not allowed.
        OSError: If there is no room on this machine's disk.
        UnreachableError: After so many attempts.
    """
    pause_s = FIRST_PAUSE_S
    for number in range(1, attempts + 1):
        try:
            return attempt()
        except (DataError, UnreachableError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OWN_DISK:
                raise
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            if _is_lasting(error):
                raise DataError(f"{url}: {reason}") from error
            if number == attempts:
                tried = f"{number} attempts" if number > 1 else "1 attempt"
                raise UnreachableError(f"{url}: {tried} failed, the last with {reason}") from error
            wait_s = pause_s * _RANDOM.uniform(0.5, 1.0)  # so that not all nodes come again at the same moment
            logger.warning("%s: attempt %d of %d: %s; again in %.1f s", url, number, attempts, reason, wait_s)
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    raise AssertionError("no attempt was made")


def _is_lasting(error: Exception) -> bool:
    """Whether the same request will fail again: what is asked for is not there, not allowed, or no request."""
    if type(error).__name__ in _NO_CREDENTIALS:
        return True
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _PASSING_STATUS
    return isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ValueError))


def _status(error: Exception) -> int | None:
    """The status of HTTP that the clients of servers keep, each in its own way: aiohttp, gcsfs, huggingface_hub."""
    answer = getattr(error, "response", None)
    found = [getattr(error, "status", None), getattr(error, "code", None), getattr(answer, "status_code", None)]
    if str(error).startswith("Forbidden: "):  # gcsfs's OSError
        return 403
    return next((status for status in found if isinstance(status, int)), None)
