"""What is asked of a Kubernetes API server, through the ``kubernetes`` package or ``kubectl``, whichever is there.

Both find the cluster by the user's kubeconfig, or by a pod's service account.
"""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, Protocol

from configs.problems import ConfigError, Problem

Object = dict[str, Any]

GROUPS = {
    "TrainJob": ("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    "TrainingRuntime": ("trainer.kubeflow.org", "v1alpha1", "trainingruntimes"),
    "JobSet": ("jobset.x-k8s.io", "v1alpha2", "jobsets"),
}
"""Group, version and plural of what is made."""
TIMEOUT_S = 60
FOLLOWED_S = 7 * 86_400
"""Longest silence of a pod whose output is followed."""


class Api(Protocol):
    """The few requests that there are. All raise ConfigError where the server refuses or cannot be reached."""

    def create(self, document: Object) -> Object:
        """Make an object; returns it."""

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object; None if there is none."""

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, and what it made before it; none is there is no error."""

    def pods(self, namespace: str, job_set: str) -> list[Object]:
        """Pods of a JobSet."""

    def kill(self, namespace: str, pod: str) -> None:
        """End a pod without a grace period."""

    def log(self, namespace: str, pod: str, *, follow: bool) -> Iterator[bytes]:
        """Lines of a pod's output; with ``follow`` until it ends. None before it has begun."""


def connect() -> Api:
    """The way to the cluster.

    Raises:
        ConfigError: If there is none.
    """
    if importlib.util.find_spec("kubernetes") is not None:
        return ClientApi()
    if shutil.which("kubectl") is not None:
        return KubectlApi()
    accepted = "pip install 'effnet[kubernetes]', or kubectl"
    raise ConfigError(
        [Problem(key="kubernetes", received="neither the kubernetes package nor kubectl", accepted=accepted)]
    )


class ClientApi:
    """Through the ``kubernetes`` package."""

    def __init__(self) -> None:
        from kubernetes import client, config

        try:
            config.load_config()
        except (config.ConfigException, OSError) as error:
            raise _refused(str(error)) from None
        self._custom, self._core = client.CustomObjectsApi(), client.CoreV1Api()

    def create(self, document: Object) -> Object:
        """As `Api` says."""
        group, version, plural = GROUPS[document["kind"]]
        namespace = document["metadata"]["namespace"]
        call = self._custom.create_namespaced_custom_object
        made: Object = _answered(call, group, version, namespace, plural, document)
        return made

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """As `Api` says."""
        group, version, plural = GROUPS[kind]
        found: Object | None = _answered(
            self._custom.get_namespaced_custom_object, group, version, namespace, plural, name
        )
        return found

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """As `Api` says."""
        group, version, plural = GROUPS[kind]
        call = self._custom.delete_namespaced_custom_object
        _answered(call, group, version, namespace, plural, name, propagation_policy="Foreground")

    def pods(self, namespace: str, job_set: str) -> list[Object]:
        """As `Api` says."""
        call = self._core.list_namespaced_pod
        found = _answered(call, namespace, label_selector=_of(job_set), _preload_content=False)
        pods: list[Object] = [] if found is None else json.loads(found.data)["items"]
        return pods

    def kill(self, namespace: str, pod: str) -> None:
        """As `Api` says."""
        _answered(self._core.delete_namespaced_pod, pod, namespace, grace_period_seconds=0, _preload_content=False)

    def log(self, namespace: str, pod: str, *, follow: bool) -> Iterator[bytes]:
        """As `Api` says."""
        call = self._core.read_namespaced_pod_log
        timeout = (TIMEOUT_S, FOLLOWED_S) if follow else TIMEOUT_S
        found = _answered(
            call, pod, namespace, container="node", follow=follow, _preload_content=False, _request_timeout=timeout,
            accepting=(400, 404),
        )  # fmt: skip
        return iter(()) if found is None else _lines(found.stream())


class KubectlApi:
    """Through ``kubectl``, by the same paths."""

    def create(self, document: Object) -> Object:
        """As `Api` says."""
        path = _path(document["kind"], document["metadata"]["namespace"])
        made: Object = json.loads(_kubectl("create", "--raw", path, "-f", "-", given=json.dumps(document)) or "{}")
        return made

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """As `Api` says."""
        answer = _kubectl("get", "--raw", f"{_path(kind, namespace)}/{name}")
        found: Object | None = None if answer is None else json.loads(answer)
        return found

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """As `Api` says."""
        _kubectl("delete", "--raw", f"{_path(kind, namespace)}/{name}?propagationPolicy=Foreground")

    def pods(self, namespace: str, job_set: str) -> list[Object]:
        """As `Api` says."""
        answer = _kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods?labelSelector={_of(job_set)}")
        pods: list[Object] = [] if answer is None else json.loads(answer)["items"]
        return pods

    def kill(self, namespace: str, pod: str) -> None:
        """As `Api` says."""
        _kubectl("delete", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}?gracePeriodSeconds=0")

    def log(self, namespace: str, pod: str, *, follow: bool) -> Iterator[bytes]:
        """As `Api` says."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log?container=node&follow={str(follow).lower()}"
        with subprocess.Popen(
            ["kubectl", "get", "--raw", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            yield from process.stdout


def _answered(call: Any, *arguments: Any, accepting: tuple[int, ...] = (404,), **options: Any) -> Any:
    """What the server answers; None where it has no such object.

    Raises:
        ConfigError: If it refuses, or there is none.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call(*arguments, **{"_request_timeout": TIMEOUT_S, **options})
    except ApiException as error:
        if error.status in accepting and call.__name__ != "create_namespaced_custom_object":
            return None
        raise _refused(_message(error.body) or str(error.reason)) from None
    except HTTPError as error:
        raise _refused(str(error)) from None


def _kubectl(*arguments: str, given: str = "") -> str | None:
    command = ["kubectl", f"--request-timeout={TIMEOUT_S}s", *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _refused(f"no answer within {2 * TIMEOUT_S} s") from None
    if done.returncode and "NotFound" in done.stderr and "create" not in arguments:
        return None
    if done.returncode:
        raise _refused(done.stderr.strip())
    return done.stdout


def _refused(message: str) -> ConfigError:
    accepted = "a cluster with Kubeflow Trainer or JobSet that the kubeconfig leads to, and rights to make them there"
    return ConfigError([Problem(key="kubernetes", received=message, accepted=accepted)])


def _message(body: Any) -> str:
    """What a Status says."""
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return ""


def _path(kind: str, namespace: str) -> str:
    group, version, plural = GROUPS[kind]
    return f"/apis/{group}/{version}/namespaces/{namespace}/{plural}"


def _of(job_set: str) -> str:
    return f"jobset.sigs.k8s.io/jobset-name={job_set}"


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest
