"""What is asked of Kubernetes of a job: to take it, how it is, to end it."""

import time
from collections.abc import Sequence

from configs.problems import ConfigError, Problem
from launch.kubernetes.api import Api, Object, connect
from launch.ledger import JobState

ENDS = {"Complete": "done", "Completed": "done", "Failed": "failed"}
"""Conditions of a TrainJob or a JobSet that has ended."""
GONE_TIMEOUT_S, POLL_S = 120.0, 0.5


def submit(documents: Sequence[Object]) -> str:
    """Make a job's objects, in place of those of a job of the same run that has ended; returns the job's id.

    Raises:
        ConfigError: If a job of the run has not ended, or the cluster refuses this one.
    """
    api, metadata = connect(), documents[-1]["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    for kind in ("TrainJob", "JobSet"):
        found = api.get(kind, namespace, name)
        if found is not None and _ended(found) is None:
            received = f"{kind} {namespace}/{name}, which has not ended"
            accepted = "one job of a run at a time: effnet cancel RUN, or wait"
            raise ConfigError([Problem(key="launch kubernetes", received=received, accepted=accepted)])
    for kind in ("TrainJob", "JobSet", "TrainingRuntime"):
        _remove(api, kind, namespace, name)
    made = [api.create(document) for document in documents]
    uid = str(made[-1]["metadata"]["uid"])
    return f"{documents[-1]['kind']}/{namespace}/{name}/{uid[:8]}"


def state(job_id: str) -> JobState | None:
    """How a job is; None once it has ended.

    Raises:
        ConfigError: If the cluster cannot be reached.
    """
    api = connect()
    found = _find(api, job_id)
    if found is None or _ended(found) is not None:
        return None
    _, namespace, name, _ = job_id.split("/")
    pods = api.pods(namespace, name)
    nodes = ",".join(sorted(pod["spec"].get("nodeName", "") for pod in pods if _phase(pod) == "Running"))
    if "deletionTimestamp" in found["metadata"]:
        return JobState(word="ending", nodes=nodes)
    if nodes:
        return JobState(word="running", nodes=nodes)
    if _condition(found, "Suspended") is not None:
        return JobState(word="suspended", reason=str(_condition(found, "Suspended")))
    return JobState(word="waiting", reason=next(filter(None, map(_why_waiting, pods)), "no pods yet"))


def verdict(job_id: str) -> str | None:
    """How a job has ended; None if it has not, or is gone."""
    found = _find(connect(), job_id)
    return None if found is None else _ended(found)


def checkpoint_and_end(job_id: str) -> None:
    """Delete a job: its pods get a signal, and the time to checkpoint."""
    kind, namespace, name, _ = job_id.split("/")
    api = connect()
    if _find(api, job_id) is not None:
        api.delete(kind, namespace, name)
        if kind == "TrainJob":  # Kubeflow Trainer keeps it as long as the job is there
            api.delete("TrainingRuntime", namespace, name)


def end_now(job_id: str) -> None:
    """Delete a job, and its pods at once."""
    _, namespace, name, _ = job_id.split("/")
    checkpoint_and_end(job_id)
    api = connect()
    for pod in api.pods(namespace, name):
        api.kill(namespace, pod["metadata"]["name"])


def _find(api: Api, job_id: str) -> Object | None:
    """The job itself, not a later one of the same name."""
    kind, namespace, name, uid = job_id.split("/")
    found = api.get(kind, namespace, name)
    return found if found is not None and found["metadata"]["uid"].startswith(uid) else None


def _remove(api: Api, kind: str, namespace: str, name: str) -> None:
    """Delete what is left of an earlier job, and wait until it is gone.

    Raises:
        ConfigError: If it stays.
    """
    if api.get(kind, namespace, name) is None:
        return
    api.delete(kind, namespace, name)
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while api.get(kind, namespace, name) is not None:
        if time.monotonic() > deadline:
            received = f"{kind} {namespace}/{name}, which does not go away"
            accepted = "a cluster that removes what is deleted"
            raise ConfigError([Problem(key="launch kubernetes", received=received, accepted=accepted)])
        time.sleep(POLL_S)


def _ended(found: Object) -> str | None:
    for kind, word in ENDS.items():
        said = _condition(found, kind)
        if said is not None:
            return word if word == "done" else f"{word}: {said}"
    return None


def _condition(found: Object, kind: str) -> str | None:
    """What a condition says that is true; None if it is not."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return str(condition.get("message") or condition.get("reason", ""))
    return None


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _why_waiting(pod: Object) -> str:
    """Why a pod does not run: its image, its secrets, or no node."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting:
            return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", condition.get("reason", "")))
    return ""
