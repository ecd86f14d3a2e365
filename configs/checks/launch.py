"""Settings of jobs that are valid alone and not together."""

import re
from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem, shown
from configs.schema import Config

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|SIGNATURE", re.IGNORECASE)
"""Part of the name of a variable that holds a secret."""
SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]*@")
"""A password in a URL."""
OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
OWN_OPTIONS = (
    "account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "export", "job-name", "nodes",
    "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos", "requeue", "no-requeue",
    "reservation", "signal", "test-only", "time", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that follow from other settings, or would break the job."""


def launch_problems(config: Config) -> Iterator[Problem]:
    """What a job gets, and options of ssh and Slurm."""
    launch, slurm = config.launch, config.launch.slurm
    for key, names in (("environment", launch.environment), ("pass_environment", launch.pass_environment)):
        for name in names:
            if SECRET_NAME.search(name):
                accepted = f"variables that are no secrets: what a job gets is written to disk, and {name} may be one"
                yield Problem(key=f"launch.{key}", received=name, accepted=accepted)
    for name, value in launch.environment.items():
        if SECRET_VALUE.search(value):
            accepted = f"URLs without passwords: what a job gets is written to disk, {name} too"
            yield Problem(key="launch.environment", received=name, accepted=accepted)
    if launch.mounts and launch.image is None:
        yield problem_with(config, "launch.mounts", "[] without launch.image", "launch.image")
    if launch.ssh.hosts and launch.ssh.hostfile is not None:
        yield problem_with(config, "launch.ssh.hostfile", "null beside launch.ssh.hosts", "launch.ssh.hosts")
    if slurm.min_nodes is not None and not slurm.elastic:
        accepted = "null without launch.slurm.elastic"
        yield problem_with(config, "launch.slurm.min_nodes", accepted, "launch.slurm.elastic")
    if (slurm.min_nodes or 0) > config.trainer.num_nodes:
        accepted = f"at most trainer.num_nodes = {config.trainer.num_nodes}"
        yield problem_with(config, "launch.slurm.min_nodes", accepted, "trainer.num_nodes")
    for name in slurm.options:
        if not OPTION_NAME.fullmatch(name) or name in OWN_OPTIONS:
            accepted = "long names of sbatch without dashes, beside those that effnet sets: " + ", ".join(OWN_OPTIONS)
            yield Problem(key="launch.slurm.options", received=name, accepted=accepted)


def kubernetes_problems(config: Config) -> Iterator[Problem]:
    """Volumes and kinds of jobs on Kubernetes."""
    for number, volume in enumerate(config.launch.kubernetes.volumes):
        key = f"launch.kubernetes.volumes[{number}]"
        kinds = [name for name in ("claim", "csi", "nfs_server") if getattr(volume, name) is not None]
        if len(kinds) != 1:
            yield Problem(key=key, received=" and ".join(kinds) or "none", accepted="one of claim, csi, nfs_server")
        if (volume.nfs_path is None) != (volume.nfs_server is None):
            yield Problem(key=key, received=shown(volume.nfs_path), accepted="nfs_server and nfs_path together")
        if volume.csi_attributes and volume.csi is None:
            yield Problem(key=key, received="csi_attributes", accepted="these beside csi only")
        for name in filter(SECRET_NAME.search, volume.csi_attributes):
            accepted = f"attributes that are no secrets: they are written to disk, and {name} may be one"
            yield Problem(key=key, received=name, accepted=accepted)
    for number, toleration in enumerate(config.launch.kubernetes.tolerations):
        key = f"launch.kubernetes.tolerations[{number}]"
        if (toleration.value is None) == (toleration.operator == "Equal"):
            accepted = "a value beside operator = Equal, and only there"
            yield Problem(key=key, received=shown(toleration.value), accepted=accepted)
        if toleration.key is None and toleration.operator != "Exists":
            yield Problem(key=key, received="null", accepted="a key beside operator = Equal")
