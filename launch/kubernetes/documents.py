"""Renders a job as documents for Kubernetes: a TrainJob of Kubeflow Trainer v2 with its own runtime, or a bare JobSet.

The configuration travels in the pods' environment, the code in the image.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from configs.exit_codes import EXIT_DO_NOT_RETRY
from configs.problems import ConfigError, Problem, shown
from configs.schema import Config, Kubernetes
from launch.job import JobSpec
from launch.kubernetes.pod_spec import NODE, Document, host_mounts, object_name, pod

LABEL = "app.kubernetes.io/name"


def render(spec: JobSpec, kubernetes: Kubernetes, config: str) -> list[Document]:
    """The documents of a job, in the order in which they are made: a pure function.

    Args:
        spec: The job, which `check` has found nothing missing in.
        kubernetes: Its settings for Kubernetes.
        config: The resolved configuration, as YAML.
    """
    name = object_name(spec)
    queue = {} if kubernetes.queue is None else {"kueue.x-k8s.io/queue-name": kubernetes.queue}
    metadata = {"name": name, "namespace": kubernetes.namespace, "labels": {LABEL: "effnet"}}
    queued = {"name": name, "namespace": kubernetes.namespace, "labels": {LABEL: "effnet", **queue}}
    job_set = _job_set(spec, kubernetes, config)
    if kubernetes.kind == "jobset":
        return [{"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": queued, "spec": job_set}]
    trainer = "trainer.kubeflow.org/v1alpha1"
    runtime = {"mlPolicy": {"numNodes": spec.num_nodes, "torch": {}}, "template": {"spec": job_set}}
    train_job = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name},
        "trainer": {"numNodes": spec.num_nodes, "numProcPerNode": spec.devices},
    }
    return [
        {"apiVersion": trainer, "kind": "TrainingRuntime", "metadata": metadata, "spec": runtime},
        {"apiVersion": trainer, "kind": "TrainJob", "metadata": queued, "spec": train_job},
    ]


def to_yaml(documents: Sequence[Document]) -> str:
    """As ``kubectl apply -f -`` takes it."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _job_set(spec: JobSpec, kubernetes: Kubernetes, config: str) -> Document:
    """JobSet's specification: one Job with a pod a node, made again as a whole when it fails, unless with 93."""
    bare = kubernetes.kind == "jobset"
    indexed = {"parallelism": spec.num_nodes, "completions": spec.num_nodes, "completionMode": "Indexed"}
    limit = {} if spec.time_limit_minutes is None else {"activeDeadlineSeconds": spec.time_limit_minutes * 60}
    on_exit_codes = {"containerName": NODE, "operator": "In", "values": [EXIT_DO_NOT_RETRY]}
    template = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {
            **(indexed if bare else {}),
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": on_exit_codes}]},
            **limit,
            "template": {"metadata": {"labels": {LABEL: "effnet"}}, "spec": pod(spec, kubernetes, config)},
        },
    }
    if bare:
        template.pop("metadata")
    # A Job fails for the reason PodFailurePolicy with 93 alone: any other end starts it again.
    stop = {"name": "do-not-retry", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "failurePolicy": {"maxRestarts": spec.max_requeues, "rules": [stop]},
        "replicatedJobs": [{"name": NODE, "replicas": 1, "template": template}],
    }


def check(spec: JobSpec, config: Config) -> None:
    """See that pods can be made, that what they write stays, and that they can reach W&B.

    Raises:
        ConfigError: If not.
    """
    kubernetes, problems = config.launch.kubernetes, []
    if spec.image is None:
        problems.append(Problem(key="launch.image", received="null", accepted="the image that Dockerfile builds"))
    places = [Path(volume.path) for volume in kubernetes.volumes if not volume.read_only]
    places += [Path(mount.target) for mount in host_mounts(spec) if not mount.read_only]
    if not any(spec.run_dir.is_relative_to(place) for place in places):
        accepted = "a folder on one of launch.kubernetes.volumes that can be written; launch.kubernetes.work_dir is "
        accepted += "where it begins in the pods"
        problems.append(Problem(key="runs_dir", received=shown(str(spec.run_dir)), accepted=accepted))
    if not str(spec.work_dir).isprintable():
        accepted = "a path without control characters"
        problems.append(
            Problem(key="launch.kubernetes.work_dir", received=shown(str(spec.work_dir)), accepted=accepted)
        )
    targets = ["/dev/shm", *(volume.path for volume in kubernetes.volumes), *(m.target for m in host_mounts(spec))]
    twice = {target for target in targets if targets.count(target) > 1}
    if twice:
        accepted = "a path of its own for each, none /dev/shm"
        problems.append(Problem(key="launch.kubernetes.volumes", received=", ".join(sorted(twice)), accepted=accepted))
    if config.tracking.mode == "online" and kubernetes.wandb_secret is None and not kubernetes.secrets:
        accepted = "the name of a Secret with WANDB_API_KEY beside tracking.mode = online, or another mode"
        problems.append(Problem(key="launch.kubernetes.wandb_secret", received="null", accepted=accepted))
    if problems:
        raise ConfigError(problems)


class _Dumper(yaml.SafeDumper):
    """Text of several lines in lines of its own, where YAML can hold it so; nothing refers to another place."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
