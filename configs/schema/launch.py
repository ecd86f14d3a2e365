"""Settings of jobs: what they need, and what each place that they run in wants to know."""

from typing import Annotated, Literal

from pydantic import Field

from configs.schema.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

SubmitValue = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Text on one line: what a scheduler's option can hold."""

AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f:]*$")]
"""A path in a container. Kubernetes takes none with a colon."""

KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""Name of an object of Kubernetes."""


class Slurm(Section):
    """What a job says to Slurm. Only `effnet launch slurm` reads it."""

    account: SubmitValue | None = None
    """Account to charge (sbatch --account); None is the user's own. So for the next four."""
    partition: SubmitValue | None = None
    """Partition, or several joined by commas."""
    qos: SubmitValue | None = None
    """Quality of service."""
    constraint: SubmitValue | None = None
    """Features that nodes must have, such as `h100&ib`."""
    reservation: SubmitValue | None = None
    """Reservation to run in."""
    signal_before_s: Annotated[int, Field(gt=0, le=65535)] = 180
    """Seconds before the time limit at which ranks are told to checkpoint and end: more than a step and a save take."""
    elastic: bool = False
    """One task per node that runs torchrun, which goes on with fewer nodes, in place of one task per device."""
    min_nodes: PositiveInt | None = None
    """Nodes that an elastic job goes on with; None is all of them. No effect without elastic."""
    modules: tuple[SubmitValue, ...] = ()
    """Environment modules that the job loads first, such as `cuda/13.0`."""
    container: Literal["pyxis", "apptainer"] = "pyxis"
    """What runs launch.image: NVIDIA's Pyxis with Enroot, or Apptainer (Singularity)."""
    options: dict[str, bool | int | SubmitValue] = {}
    """Further options of sbatch by their long names, such as `exclude: node[3-4]`, `exclusive: true`."""


class Ssh(Section):
    """Hosts that are reached by ssh. Only `effnet launch ssh` reads it."""

    hosts: tuple[SubmitValue, ...] = ()
    """Hosts, as many as trainer.num_nodes: `node1` or `node1 slots=8`, a name of ssh's configuration or `user@address`.
    The first has the rendezvous."""
    hostfile: str | None = None
    """File with such a line for each host, in place of launch.ssh.hosts; `#` begins a comment."""
    config_file: str | None = None
    """Configuration of ssh (`ssh -F`); None is the user's own."""
    master_addr: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$")] | None = None
    """Address by which the other hosts reach the first one; None is the one by which ssh reached it."""
    master_port: Annotated[int, Field(gt=0, le=65535)] | None = None
    """Port of the rendezvous on the first host; None is one that is free there."""
    lost_after_s: Annotated[int, Field(ge=3)] = 30
    """Seconds without an answer after which a host is given up, and a host without word from here ends its ranks."""


class Volume(Section):
    """Storage that the pods see: of `claim`, `csi` and `nfs_server`, one."""

    path: AbsolutePath
    """Where the pods see it."""
    claim: SubmitValue | None = None
    """A PersistentVolumeClaim; for several nodes one that is ReadWriteMany (or ReadOnlyMany, for shards)."""
    csi: SubmitValue | None = None
    """A CSI driver that mounts an object store in the pod's lifetime, such as `gcsfuse.csi.storage.gke.io`."""
    csi_attributes: dict[str, str] = {}
    """What the driver is told, such as `bucketName: imagenet`."""
    nfs_server: SubmitValue | None = None
    """Host of an NFS server."""
    nfs_path: AbsolutePath | None = None
    """Folder that the NFS server exports."""
    sub_path: Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")] | None = None
    """Folder of the storage that is seen; None is all of it."""
    read_only: bool = False
    """Whether the pods only read, as is right for shards."""


class Toleration(Section):
    """A taint of nodes that does not keep the pods away, in the words of Kubernetes."""

    key: SubmitValue | None = None
    """Key of the taint; None is every key, with `operator: Exists`."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether any value is meant or `value` alone."""
    value: SubmitValue | None = None
    """Value of the taint, with `operator: Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; None is every one."""


class Kubernetes(Section):
    """What a job says to Kubernetes. Only `effnet launch kubernetes` reads it."""

    kind: Literal["trainjob", "jobset"] = "trainjob"
    """A TrainJob of Kubeflow Trainer v2 with a TrainingRuntime of its own, or a JobSet alone."""
    namespace: KubernetesName = "default"
    """Namespace of all that is made."""
    work_dir: AbsolutePath | None = None
    """Where relative paths of the configuration begin in the pods, runs_dir among them; None is the folder that
    `effnet` is called in, which a volume must then bring under the same path."""
    volumes: tuple[Volume, ...] = ()
    """Storage for shards and runs. The run directory must lie on one that can be written."""
    shared_memory_gb: PositiveInt = 16
    """Size of /dev/shm in GiB, through which loaders pass batches. It counts as memory of the pod."""
    wandb_secret: KubernetesName | None = None
    """Secret of the namespace that has the W&B key as WANDB_API_KEY."""
    secrets: tuple[KubernetesName, ...] = ()
    """Secrets all of whose entries become variables, such as those of an object store."""
    image_pull_secret: KubernetesName | None = None
    """Secret with which launch.image is pulled."""
    service_account: KubernetesName | None = None
    """Service account of the pods; None is the namespace's default."""
    node_selector: dict[str, str] = {}
    """Labels that nodes must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that do not matter."""
    queue: KubernetesName | None = None
    """LocalQueue of Kueue that admits the job; None is no queue."""
    gpu_resource: SubmitValue = "nvidia.com/gpu"
    """Name of a GPU among the resources of a node."""
    resources: dict[str, PositiveInt] = {}
    """Further resources of each pod, such as `rdma/hca: 1`."""
    termination_grace_s: PositiveInt = 600
    """Seconds from the signal to the kill: longer than a step and a save take."""


class Hardware(Section):
    """What a device and a node can do, by datasheets, without sparsity. Only `effnet plan` reads it. GB is 10^9."""

    device: SubmitValue | None = None
    """Name of the device, such as `NVIDIA H100 SXM`."""
    memory_gb: PositiveFloat | None = None
    """Memory of a device in GiB."""
    memory_gb_per_s: PositiveFloat | None = None
    """Bandwidth of that memory."""
    fp32_tflops: PositiveFloat | None = None
    """Peak rate of convolutions with 32-true (on NVIDIA's GPUs since 2020 that of TF32, cuDNN's default)."""
    fp16_tflops: PositiveFloat | None = None
    """Peak rate with 16-mixed; None where the device is none for it."""
    bf16_tflops: PositiveFloat | None = None
    """Peak rate with bf16-mixed; None where the device is none for it."""
    device_link_gb_per_s: PositiveFloat | None = None
    """What a device sends to others in its node, such as by NVLink, each way."""
    node_link_gb_per_s: PositiveFloat | None = None
    """What a node sends to others, over all its network cards, each way."""
    storage_gb_per_s: PositiveFloat | None = None
    """What a node reads from where the shards are."""
    cores_per_node: PositiveInt | None = None
    """Cores of a node's CPUs."""
    images_per_core_s: PositiveFloat = 760.0
    """Images that a core decodes, crops to 224 and collates in a second, without auto_augment (500x375 JPEGs of 110 KB,
    an EPYC core: `benchmarks/data.py`, 25 November 2026)."""


class Launch(Section):
    """What a job on a cluster gets. No part of the experiment: it may differ between two attempts of one run."""

    cpus_per_device: PositiveInt | None = None
    """Cores for each device's process and its loaders; None is data.num_workers + 1."""
    memory_per_node_gb: PositiveInt | None = None
    """Main memory of each node in GiB; None is the cluster's default."""
    time_limit_minutes: PositiveInt | None = None
    """Longest time that the job may take at a stretch; None is the cluster's default. A requeued job has it anew."""
    python: str | None = None
    """Interpreter on the nodes; None is the one that runs `effnet`, or `python3` in an image."""
    image: SubmitValue | None = None
    """Container image to run in, as the cluster's container runtime names it; None runs on the nodes themselves."""
    mounts: tuple[Annotated[str, Field(pattern=r"^/[^:,]*:/[^:,]*(:ro)?$")], ...] = ()
    """Folders that a container sees, `/on/the/node:/in/the/container` or with `:ro`; the run's own is always there."""
    pass_environment: tuple[VariableName, ...] = ()
    """Names of variables of this shell that the job gets too, beyond those of NCCL, gloo and proxies."""
    environment: dict[VariableName, str] = {}
    """Variables that the job gets, by name. No secrets: this is written to the run directory."""
    max_requeues: NonNegativeInt = 100
    """Times that the job goes back into the queue after a checkpoint (time limit, preemption); then it ends with 85."""
    max_failures: NonNegativeInt = 3
    """Failures in a row, without a new checkpoint between, after which the job starts again; one more ends it."""
    hardware: Hardware = Hardware()
    slurm: Slurm = Slurm()
    ssh: Ssh = Ssh()
    kubernetes: Kubernetes = Kubernetes()
