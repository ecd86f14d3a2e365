"""What is wrong with a user's input: one problem, and the error that carries all of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_SHOWN = 200
"""Characters of a received value that are printed."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake of the user's, in the form in which it is shown.

    Attributes:
        key: Dotted path of the setting, such as ``data.global_batch_size``.
        received: The value as it was received, already formatted.
        accepted: What would have been accepted, or what to do.
        origin: Where the value came from (``file.yaml:12``, ``command line``), if known.
        beside: Other settings that it is about. Where one of them is at fault itself, this problem may be no more than
            a consequence.
    """

    key: str
    received: str
    accepted: str
    origin: str | None = None
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"  ({self.origin})" if self.origin else ""
        return f"  {self.key}{where}\n      received  {self.received}\n      accepted  {self.accepted}"


class ConfigError(Exception):
    """All problems of a configuration at once. The process ends with exit code 93 and no traceback."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = f"configuration: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([title, *map(str, self.problems)]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[Problem, ...]]]:
        """Travels between processes by its problems, not by its text."""
        return type(self), (self.problems,)


class DataError(Exception):
    """The data is at fault (no shard found, a truncated tar, a label out of range): running again will not help."""


class UnreachableError(Exception):
    """A server did not give what it was asked for, however often: running again later may help."""


def shown(value: object) -> str:
    """A value the way a user writes it in a file: ``null``, ``true``, text in quotes; cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
