"""The pods of a job on Kubernetes: container, variables, resources, storage.

Kubernetes replaces ``$(NAME)`` in commands, arguments and values of variables: each dollar sign there is doubled, so
that it stays what it is.
"""

import hashlib
import re
from typing import Any

from configs.run import GRACE
from configs.schema import Kubernetes, Volume
from launch.job import JobSpec, Mount
from launch.kubernetes.pod import CONFIG, JOB_UID, RESTART

Document = dict[str, Any]

NODE = "node"
"""Name that Kubeflow Trainer knows the training job and its container by."""
PORT = 29500
"""Where rank 0 listens; the pods have addresses of their own."""
SHARED_MEMORY = "shared-memory"
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def object_name(spec: JobSpec) -> str:
    """The same for all jobs of a run directory, and only these: two of them cannot be there at once."""
    words = re.sub(r"[^a-z0-9]+", "-", spec.run_id.lower())[:30].strip("-")
    digest = hashlib.sha256(str(spec.run_dir).encode()).hexdigest()[:6]
    return "-".join(["effnet", *filter(None, [words]), digest])  # pods' names, longer by 18, must stay below 64


def literal(text: str) -> str:
    """Text in a command, an argument or a variable's value that Kubernetes leaves as it is."""
    return text.replace("$", "$$")


def pod(spec: JobSpec, kubernetes: Kubernetes, config: str) -> Document:
    """Specification of each pod: they differ in what Kubernetes says to them alone."""
    volumes, mounts = _volumes(spec, kubernetes)
    optional = {
        "serviceAccountName": kubernetes.service_account,
        "imagePullSecrets": [{"name": kubernetes.image_pull_secret}] if kubernetes.image_pull_secret else None,
        "nodeSelector": dict(kubernetes.node_selector),
        "tolerations": [toleration.model_dump(exclude_none=True) for toleration in kubernetes.tolerations],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": kubernetes.termination_grace_s,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        **{name: value for name, value in optional.items() if value},
        "containers": [_container(spec, kubernetes, config, mounts)],
        "volumes": volumes,
    }


def _container(spec: JobSpec, kubernetes: Kubernetes, config: str, mounts: list[Document]) -> Document:
    resources = _resources(spec, kubernetes)
    secrets = [{"secretRef": {"name": name}} for name in kubernetes.secrets]
    return {
        "name": NODE,
        "image": spec.image,
        "command": [literal(word) for word in pod_command(spec)],
        "workingDir": str(spec.work_dir),
        "env": _variables(spec, kubernetes, config),
        **({"envFrom": secrets} if secrets else {}),
        # As much is granted as is asked for: no other pod takes the loaders' cores.
        "resources": {"requests": resources, "limits": resources},
        **({"ports": [{"containerPort": PORT, "protocol": "TCP"}]} if kubernetes.kind == "jobset" else {}),
        "volumeMounts": mounts,
    }


def pod_command(spec: JobSpec) -> tuple[str, ...]:
    """What each pod runs: no shell."""
    return (spec.python, "-m", "launch.kubernetes.pod", str(spec.run_dir), f"--max-failures={spec.max_failures}")


def _variables(spec: JobSpec, kubernetes: Kubernetes, config: str) -> list[Document]:
    plain = {GRACE: str(kubernetes.termination_grace_s), **spec.environment}
    plain |= {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", CONFIG: config}
    fields = {
        JOB_UID: "metadata.labels['batch.kubernetes.io/controller-uid']",
        RESTART: "metadata.labels['jobset.sigs.k8s.io/restart-attempt']",
    }
    if kubernetes.kind == "jobset":  # what Kubeflow Trainer adds by itself
        name = object_name(spec)
        plain |= {
            "PET_NNODES": str(spec.num_nodes),
            "PET_NPROC_PER_NODE": str(spec.devices),
            "PET_MASTER_ADDR": f"{name}-{NODE}-0-0.{name}",
            "PET_MASTER_PORT": str(PORT),
        }
        fields["PET_NODE_RANK"] = COMPLETION_INDEX
    variables: list[Document] = [{"name": name, "value": literal(value)} for name, value in plain.items()]
    variables += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    if kubernetes.wandb_secret is not None:
        key = {"name": kubernetes.wandb_secret, "key": "WANDB_API_KEY"}
        variables.append({"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": key}})
    return variables


def _resources(spec: JobSpec, kubernetes: Kubernetes) -> dict[str, str]:
    """Of one pod."""
    resources = {"cpu": str(spec.devices * spec.cpus_per_device)}
    if spec.memory_per_node_gb is not None:
        resources["memory"] = f"{spec.memory_per_node_gb}Gi"
    if spec.gpus:
        resources[kubernetes.gpu_resource] = str(spec.devices)
    return resources | {name: str(count) for name, count in kubernetes.resources.items()}


def _volumes(spec: JobSpec, kubernetes: Kubernetes) -> tuple[list[Document], list[Document]]:
    """Volumes of a pod, and where its container sees them."""
    memory = {"medium": "Memory", "sizeLimit": f"{kubernetes.shared_memory_gb}Gi"}
    volumes: list[Document] = [{"name": SHARED_MEMORY, "emptyDir": memory}]
    mounts: list[Document] = [{"name": SHARED_MEMORY, "mountPath": "/dev/shm"}]
    for number, volume in enumerate(kubernetes.volumes):
        name = f"volume-{number}"
        volumes.append({"name": name, **_source(volume)})
        sub_path = {} if volume.sub_path is None else {"subPath": volume.sub_path}
        mounts.append({"name": name, "mountPath": volume.path, **sub_path, "readOnly": volume.read_only})
    for number, mount in enumerate(host_mounts(spec)):
        name = f"host-{number}"
        volumes.append({"name": name, "hostPath": {"path": mount.source, "type": "Directory"}})
        mounts.append({"name": name, "mountPath": mount.target, "readOnly": mount.read_only})
    return volumes, mounts


def _source(volume: Volume) -> Document:
    if volume.claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.claim}}
    if volume.nfs_server is not None:
        return {"nfs": {"server": volume.nfs_server, "path": volume.nfs_path, "readOnly": volume.read_only}}
    told = {"volumeAttributes": dict(volume.csi_attributes)} if volume.csi_attributes else {}
    return {"csi": {"driver": volume.csi, "readOnly": volume.read_only, **told}}


def host_mounts(spec: JobSpec) -> list[Mount]:
    """Those of launch.mounts: a run's own folder comes from a volume here."""
    own = {str(spec.work_dir), str(spec.run_dir)}
    return [mount for mount in spec.mounts if mount.source != mount.target or mount.source not in own]
