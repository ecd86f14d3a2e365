"""Work on several processes: a bounded number of tasks in flight, no process left behind."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

CHECK_INTERVAL_S = 0.2
TASKS_PER_WORKER = 2
"""One at work and one that waits, so that no worker does."""


def default_workers() -> int:
    """As many as there are cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Generator[Result, None, None]:
    """Results of ``work``, as they come. Tasks are drawn when there is room for them.

    The first task that fails ends it, and the others at once, whatever they are at. One worker is this process itself.

    Raises:
        ChildProcessError: If a worker dies, as where memory is short.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    waiting = iter(tasks)
    # Not fork: the progress bar has a thread, and a fork would inherit its locks.
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(), stop))
    flying: set[Future[Result]] = set()
    try:
        while True:
            flying |= {pool.submit(work, task) for task in islice(waiting, TASKS_PER_WORKER * workers - len(flying))}
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise ChildProcessError("a worker process died, perhaps for want of memory: try fewer --workers") from None
    finally:
        if flying:
            stop.set()
        pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its workers
    threading.Thread(target=_end_when_told, args=(parent, stop), daemon=True).start()


def _end_when_told(parent: int, stop: Event) -> None:
    """A killed parent cannot end its workers, and they would wait for tasks for ever."""
    while os.getppid() == parent and not stop.wait(CHECK_INTERVAL_S):
        pass
    os._exit(1)
