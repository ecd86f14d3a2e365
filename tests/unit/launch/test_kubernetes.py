"""The documents for Kubernetes: what is rendered, that the real schemas take it, and that no value becomes another."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import dump_yaml, load_config
from configs.problems import ConfigError
from launch.job import job_spec
from launch.kubernetes.documents import check, render, to_yaml
from launch.kubernetes.pod import CONFIG, rank_variables
from launch.kubernetes.pod_spec import object_name
from tests.unit.configs.loading import config_of, problems_of
from tests.unit.launch.kubernetes_schemas import expanded, pod_template, validate

GOLDEN = Path(__file__).parent / "golden"
CODE_DIR = Path("/code")
RUNS = "{path: /effnet, claim: runs}"
CLUSTER = (
    "name=b0",
    "run_id=b0",
    "trainer.devices=4",
    "trainer.num_nodes=2",
    "trainer.precision=bf16-mixed",
    "data.global_batch_size=512",
    "data.num_workers=12",
    "launch.image=registry.example.org/effnet:1",
    "launch.time_limit_minutes=1440",
    "launch.memory_per_node_gb=400",
    "launch.kubernetes.work_dir=/effnet",
    "launch.kubernetes.wandb_secret=wandb",
)
EVERYTHING = (
    "launch.kubernetes.namespace=vision",
    f"launch.kubernetes.volumes=[{RUNS}, {{path: /data, csi: gcsfuse.csi.storage.gke.io, csi_attributes: "
    "{bucketName: imagenet}, read_only: true}, {path: /nfs, nfs_server: nfs.example.org, nfs_path: /export, "
    "sub_path: shards, read_only: true}]",
    "launch.kubernetes.secrets=[object-store]",
    "launch.kubernetes.image_pull_secret=registry",
    "launch.kubernetes.service_account=trainer",
    "launch.kubernetes.node_selector={'cloud.google.com/gke-accelerator': nvidia-h100-80gb}",
    "launch.kubernetes.tolerations=[{key: nvidia.com/gpu, effect: NoSchedule}, {key: team, operator: Equal, value: v}]",
    "launch.kubernetes.queue=gpus",
    "launch.kubernetes.resources={rdma/hca: 1}",
    "launch.mounts=['/mnt/disks/ssd:/cache']",
)
SHAPES: dict[str, tuple[str, ...]] = {
    "kubernetes_trainjob.yaml": (f"launch.kubernetes.volumes=[{RUNS}]",),
    "kubernetes_trainjob_everything.yaml": EVERYTHING,
    "kubernetes_jobset.yaml": (*EVERYTHING, "launch.kubernetes.kind=jobset"),
}
NASTY = "a b\"c'd$(touch pwned)$$(HOME)`x`$HOME\\;&|>\n\t- key: value # no\n日本 $(WANDB_API_KEY) $"


def rendered(
    *overrides: str, environment: dict[str, str] | None = None, text: str | None = None
) -> list[dict[str, Any]]:
    config = config_of(*CLUSTER, *overrides)
    shell = {"NCCL_IB_HCA": "mlx5", "WANDB_API_KEY": "0123456789", **(environment or {})}
    work_dir = Path(config.launch.kubernetes.work_dir or "/home/me")
    spec = job_spec(config, code_dir=CODE_DIR, work_dir=work_dir, environment=shell)
    check(spec, config)
    return render(spec, config.launch.kubernetes, dump_yaml(config) if text is None else text)


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = pod_template(documents)["spec"]["containers"]
    return dict(found)


def values(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Variables with a value of their own, as the container gets them."""
    literals = {each["name"]: each["value"] for each in container(documents)["env"] if "value" in each}
    others = {"HOME": "/root", "WANDB_API_KEY": "secret"}
    return {name: expanded(value, literals | others) for name, value in literals.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_the_documents_are_those_that_were_reviewed(name: str) -> None:
    """After a change that is meant: EFFNET_RENEW_GOLDEN=1 pytest, and read the difference."""
    text = to_yaml(rendered(*SHAPES[name], text="name: b0\nseed: 0\n"))
    if "EFFNET_RENEW_GOLDEN" in os.environ:
        (GOLDEN / name).write_text(text, encoding="utf-8")

    assert text == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHAPES)
def test_the_real_schemas_take_them_without_loss_and_the_key_is_in_none(name: str) -> None:
    documents = rendered(*SHAPES[name])
    text = to_yaml(documents)

    validate(documents)
    assert list(yaml.safe_load_all(text)) == documents
    assert "0123456789" not in text
    (key,) = (each for each in container(documents)["env"] if each["name"] == "WANDB_API_KEY")
    assert key["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("place", ["document", "job", "pod", "container"])
def test_the_schemas_refuse_a_misspelt_field(name: str, place: str) -> None:
    documents = copy.deepcopy(rendered(*SHAPES[name]))
    template = pod_template(documents)
    {
        "document": documents[-1]["spec"],
        "job": documents[0]["spec"].get("template", documents[0])["spec"]["replicatedJobs"][0]["template"]["spec"],
        "pod": template["spec"],
        "container": template["spec"]["containers"][0],
    }[place]["misspelt"] = 1

    with pytest.raises(Exception, match="misspelt"):
        validate(documents)


def test_a_job_stops_with_93_and_starts_again_with_any_other_code() -> None:
    (document,) = rendered(*SHAPES["kubernetes_jobset.yaml"], "launch.max_requeues=7")
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]

    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [93])
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
    (stop,) = document["spec"]["failurePolicy"]["rules"]
    assert (stop["action"], stop["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod_template([document])["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", SHAPES)
def test_every_value_reaches_the_container_unchanged(name: str) -> None:
    tag = yaml.safe_dump([NASTY], default_flow_style=True, width=10_000).strip()
    documents = rendered(
        *SHAPES[name], f"tracking.tags={tag}", "launch.python='/opt/my $(HOME)/python'", "run_id=b0",
        environment={"NCCL_NASTY": NASTY, "NCCL_DOLLARS": "$$$(HOME)$$$$"},
    )  # fmt: skip
    documents = list(yaml.safe_load_all(to_yaml(documents)))

    found = values(documents)
    assert found["NCCL_NASTY"] == NASTY
    assert found["NCCL_DOLLARS"] == "$$$(HOME)$$$$"
    command = [expanded(word, found | {"HOME": "/root"}) for word in container(documents)["command"]]
    assert command[0] == "/opt/my $(HOME)/python"
    validate(documents)


def test_the_configuration_arrives_as_it_was(tmp_path: Path) -> None:
    tag = yaml.safe_dump([NASTY], default_flow_style=True, width=10_000).strip()
    overrides = (
        *SHAPES["kubernetes_trainjob.yaml"],
        f"tracking.tags={tag}",
        "data.train_shards='/data/日 本/a\"b.tar'",
    )
    file = tmp_path / "config.yaml"
    file.write_text(values(rendered(*overrides))[CONFIG], encoding="utf-8")

    assert load_config([str(file)]).config == config_of(*CLUSTER, *overrides)
    assert config_of(*CLUSTER, *overrides).tracking.tags == (NASTY,)


def test_a_jobset_says_itself_what_kubeflow_trainer_would() -> None:
    documents = rendered(*SHAPES["kubernetes_jobset.yaml"])
    found = values(documents) | {"PET_NODE_RANK": "1"}

    assert [(ranks["RANK"], ranks["LOCAL_RANK"], ranks["WORLD_SIZE"]) for ranks in rank_variables(found)] == [
        ("4", "0", "8"), ("5", "1", "8"), ("6", "2", "8"), ("7", "3", "8")
    ]  # fmt: skip
    name = documents[0]["metadata"]["name"]
    assert found["PET_MASTER_ADDR"] == f"{name}-node-0-0.{name}"
    assert not any(variable.startswith("PET_") for variable in values(rendered(*SHAPES["kubernetes_trainjob.yaml"])))


def test_names_fit_a_pods_and_differ_by_run_directory() -> None:
    config = config_of(*CLUSTER, "run_id=" + "My_Run." * 14)
    one, two = (
        object_name(job_spec(config, code_dir=CODE_DIR, work_dir=Path(place), environment={})) for place in ("/a", "/b")
    )

    assert one != two
    assert one.startswith("effnet-my-run-my-run-")
    assert len(f"{one}-node-0-1000-abcde") < 64


def test_what_pods_would_lose_or_lack_is_refused() -> None:
    with pytest.raises(ConfigError, match="that can be written"):
        rendered()
    with pytest.raises(ConfigError, match="that can be written"):
        rendered("launch.kubernetes.volumes=[{path: /effnet, claim: runs, read_only: true}]")
    with pytest.raises(ConfigError, match=r"launch\.image"):
        rendered(*SHAPES["kubernetes_trainjob.yaml"], "launch.image=null")
    with pytest.raises(ConfigError, match="a path of its own for each"):
        rendered(f"launch.kubernetes.volumes=[{RUNS}, {RUNS}]")
    with pytest.raises(ConfigError, match="wandb_secret"):
        rendered(*SHAPES["kubernetes_trainjob.yaml"], "launch.kubernetes.wandb_secret=null")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("volumes=[{path: /a}]", "volumes[0]"),
        ("volumes=[{path: /a, claim: b, csi: c}]", "volumes[0]"),
        ("volumes=[{path: /a, claim: b, csi_attributes: {c: d}}]", "volumes[0]"),
        ("volumes=[{path: /a, csi: b, csi_attributes: {secretKey: d}}]", "volumes[0]"),
        ("volumes=[{path: /a, nfs_server: b}]", "volumes[0]"),
        ("tolerations=[{key: a, value: b}]", "tolerations[0]"),
        ("namespace='a b'", "namespace"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, key: str) -> None:
    assert f"launch.kubernetes.{key}" in problems_of(f"launch.kubernetes.{override}")
