"""How far each rank is, kept where all meet, so that one that does not answer is named in place of waited for."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from trainer.processes import Processes

BEAT_S = 1.0
POLL_S = 0.05
PATIENCE_S = 60.0
"""From rank 0's deadline to that of the others: by then it has said who is silent, or is silent itself."""
_stores: list[TCPStore] = []
"""Where process groups meet later: without a launcher's, rank 0's must be there still."""
Said = Mapping[str, Any]


class RollCall:
    """A place where ranks leave words for each other, within a time.

    Attributes:
        store: Of torch, in which all words are.
    """

    def __init__(
        self, processes: Processes, *, host: str, timeout_s: float, on_silence: Callable[[Mapping[int, str]], None]
    ) -> None:
        """Ranks meet as process groups do.

        Args:
            processes: Where this process stands.
            host: Its node's name.
            timeout_s: Longest time until the end.
            on_silence: Called in a thread when that is over, with the ranks that are silent and what is known of them;
                on another rank than 0, with that one alone. It ends the process.
        """
        self._processes = processes
        self._said: dict[str, Any] = {"host": host, "at": "the beginning", "stage": 0, "beat": 0}
        self._on_silence = on_silence
        self._timeout_s = timeout_s + (PATIENCE_S if processes.global_rank else 0.0)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.store = self._connected() if processes.world_size > 1 else None
        self._beats = self._connected() if processes.world_size > 1 else None  # a store serves one caller at a time

    def _connected(self) -> PrefixStore:
        """The store at which process groups meet. torch's own way to it waits for all ranks, and names none."""
        of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=self._processes.global_rank == 0 and not of_agent,
            timeout=timedelta(seconds=self._timeout_s + PATIENCE_S),
            wait_for_workers=False,
            multi_tenant=True,
        )
        _stores.append(store)
        return PrefixStore(f"effnet/doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def __enter__(self) -> "RollCall":
        self._tell()
        for work in (self._beat, self._watch):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()

    def at(self, what: str) -> None:
        """This rank begins with something."""
        self._said |= {"at": what, "stage": self._said["stage"] + 1}
        self._tell()

    def say(self, name: str, value: object) -> None:
        """Leave a word, as JSON can hold it."""
        assert self.store is not None
        self.store.set(name, json.dumps(value))

    def hear(self, name: str) -> Any:
        """A word, waited for."""
        assert self.store is not None
        return json.loads(self.store.get(name))

    def from_first(self, name: str, own: Any) -> Any:
        """A word of rank 0's, on all; it goes on when all have it, or have had `PATIENCE_S`: its end may be theirs."""
        if self.store is None:
            return own
        if self._processes.global_rank:
            word = self.hear(name)
            self.store.add(f"{name}/heard", 1)
            return word
        self.say(name, own)
        until = time.monotonic() + PATIENCE_S
        while self.store.add(f"{name}/heard", 0) < self._processes.world_size - 1 and time.monotonic() < until:
            time.sleep(POLL_S)
        return own

    def _tell(self) -> None:
        if self._beats is not None:
            with self._lock:
                self._beats.set(f"rank/{self._processes.global_rank}", json.dumps(self._said))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._said["beat"] += 1
            self._tell()

    def _watch(self) -> None:
        if self._ended.wait(self._timeout_s):
            return
        if self._processes.global_rank:
            self._on_silence({0: "gave no verdict"})
        elif self._beats is None:
            self._on_silence({0: f"did not come past {self._said['at']}"})
        else:
            before = self._all()
            self._ended.wait(4 * BEAT_S)
            self._on_silence(silent(before, self._all()))

    def _all(self) -> list[Said | None]:
        assert self._beats is not None
        found: list[Said | None] = []
        for rank in range(self._processes.world_size):
            with self._lock:
                known = self._beats.check([f"rank/{rank}"])
                found.append(json.loads(self._beats.get(f"rank/{rank}")) if known else None)
        return found


def silent(before: Sequence[Said | None], after: Sequence[Said | None]) -> dict[int, str]:
    """Ranks that others wait for, and what is known of them, by two looks at what they said last.

    That is those that have never begun or have stopped; else those that are behind; else all, who wait for each other.
    """
    found = {}
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        if new is None:
            found[rank] = "never began"
        elif old is not None and old["beat"] == new["beat"]:
            found[rank] = f"{new['host']}: stopped at {new['at']}"
    if found:
        return found
    known = [each for each in after if each is not None]
    furthest = max(each["stage"] for each in known)
    behind = {rank: each for rank, each in enumerate(known) if each["stage"] < furthest}
    return {rank: f"{each['host']}: still at {each['at']}" for rank, each in (behind or dict(enumerate(known))).items()}
