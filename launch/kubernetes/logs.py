"""``effnet logs`` where the pods' run directory is out of reach: what they print, which is what their ranks log."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from configs.run import RunDirectory
from launch.kubernetes.api import Api, connect
from launch.ledger import submissions
from launch.reading_logs import CLOCK


def job_with_logs_elsewhere(run: RunDirectory) -> str | None:
    """Id of the run's last job, if that is on Kubernetes and no rank's log is in the run directory here."""
    sent = submissions(run)
    here = any(run.path.glob("logs/*/rank_*.log"))
    return sent[-1].job_id if sent and sent[-1].engine == "kubernetes" and not here else None


def show_pod_logs(job_id: str, write: Callable[[str], None], *, rank: int | None, follow: bool) -> None:
    """Write the lines of a job's pods: by time, or as they come with ``follow``, until all pods have ended.

    Args:
        job_id: Of the job.
        write: Takes a line at a time.
        rank: Only this one; None is all, with what the pods say beside.
        follow: Wait for more.

    Raises:
        ConfigError: If the cluster cannot be reached.
    """
    _, namespace, job_set, _ = job_id.split("/")
    api = connect()
    pods = sorted(pod["metadata"]["name"] for pod in api.pods(namespace, job_set))
    lines = _as_they_come(api, namespace, pods) if follow else _by_time(api, namespace, pods)
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\n")
        if rank is None or text.startswith(f"{rank}: "):
            write(text)


def _by_time(api: Api, namespace: str, pods: list[str]) -> list[bytes]:
    found: list[tuple[bytes, bytes]] = []
    for pod in pods:
        clock = b""
        for line in api.log(namespace, pod, follow=False):
            time = CLOCK.match(line.partition(b": ")[2])
            clock = time.group() if time else clock
            found.append((clock, line))
    return [line for _, line in sorted(found, key=lambda each: each[0])]


def _as_they_come(api: Api, namespace: str, pods: list[str]) -> Iterator[bytes]:
    queue: SimpleQueue[bytes | None] = SimpleQueue()

    def read(pod: str) -> None:
        try:
            for line in api.log(namespace, pod, follow=True):
                queue.put(line)
        finally:
            queue.put(None)

    for pod in pods:
        threading.Thread(target=read, args=(pod,), daemon=True).start()
    running = len(pods)
    while running:
        line = queue.get()
        if line is None:
            running -= 1
        else:
            yield line
