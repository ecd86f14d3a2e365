"""The verbs against an API server on loopback, through the package and through kubectl."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from configs.run import RunDirectory
from launch.ledger import submissions
from tests.unit.launch.commands import MINIMAL, effnet
from tests.unit.launch.kubernetes_schemas import validate
from tests.unit.launch.kubernetes_server import Cluster, api_server

SETTINGS = [
    *MINIMAL, "run_id=mine", "trainer.devices=2", "data.num_lanes=8", "tracking.mode=offline",
    "launch.image=effnet:1", "launch.kubernetes.work_dir=/effnet",
    "launch.kubernetes.volumes=[{path: /effnet, claim: runs}]",
]  # fmt: skip
WAYS = ["package", pytest.param("kubectl", marks=pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl"))]
LOGS = {
    "a": b"mine: attempt 0\n0: 2026-01-01 00:00:01,000 INFO effnet: one\n0: more\n0: 2026-01-01 00:00:03,000 three\n",
    "b": b"1: 2026-01-01 00:00:02,000 INFO effnet: two\n",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with api_server(tmp_path / "kubeconfig") as cluster:
        yield cluster


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., "CompletedProcess[str]"]:
    """Runs `effnet` in a folder of its own; without the package where kubectl is to be used."""
    variables = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path), "WANDB_API_KEY": "0123456789"}
    if request.param == "kubectl":
        # As if it were not installed: a finder that finds no package of this name.
        (tmp_path / "hidden").mkdir()
        hide = "import importlib.util as util\nfind = util.find_spec\n"
        hide += "util.find_spec = lambda name, *rest: None if name == 'kubernetes' else find(name, *rest)\n"
        (tmp_path / "hidden/sitecustomize.py").write_text(hide)
        variables["PYTHONPATH"] = f"{tmp_path}/hidden:{Path(__file__).parents[3]}"

    def run(*arguments: str) -> "CompletedProcess[str]":
        return effnet(*arguments, cwd=tmp_path, **variables)

    return run


def launched(call: Callable[..., "CompletedProcess[str]"], *settings: str) -> "CompletedProcess[str]":
    done = call("launch", "kubernetes", *SETTINGS, *settings)
    assert done.returncode == 0, done.stderr
    return done


def test_a_job_is_submitted_seen_read_and_ended_after_a_checkpoint(
    cluster: Cluster, call: Callable[..., "CompletedProcess[str]"], tmp_path: Path
) -> None:
    printed = call("launch", "kubernetes", *SETTINGS, "--dry-run").stdout
    assert not cluster.requests
    assert not (tmp_path / "runs").exists()
    launched(call)

    sent = [dict(cluster.only("trainingruntimes")), dict(cluster.only("trainjobs"))]
    name = sent[1]["metadata"]["name"]
    uids = [document["metadata"].pop("uid") for document in sent]
    assert sent == list(yaml.safe_load_all(printed))
    validate(sent)
    run = RunDirectory(tmp_path / "runs/mine")
    (submission,) = submissions(run)
    assert submission.job_id == f"TrainJob/default/{name}/{uids[1][:8]}"
    assert Path(submission.artefact).read_text() == printed
    assert "0123456789" not in "".join(file.read_text() for file in run.path.rglob("*") if file.is_file())
    for document, uid in zip(sent, uids, strict=True):
        document["metadata"]["uid"] = uid

    assert "waiting (kubernetes job" in call("status", "mine").stdout
    cluster.add_pod(name, "a", {"phase": "Pending", "containerStatuses": [
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    ]})  # fmt: skip
    assert "ImagePullBackOff" in call("status", "mine").stdout
    for pod, log in LOGS.items():
        cluster.add_pod(name, pod, {"phase": "Running"}, node=f"node-{pod}", log=log)
    assert "running (kubernetes job" in call("status", "mine").stdout
    assert "node-a,node-b" in call("status", "mine").stdout

    by_time = [line.split()[-1] for line in call("logs", "mine").stdout.splitlines()]
    assert by_time == ["0", "one", "more", "two", "three"]
    assert call("logs", "mine", "--rank", "1").stdout == LOGS["b"].decode()
    followed = call("logs", "mine", "--follow").stdout.splitlines()
    assert sorted(followed) == sorted(b"".join(LOGS.values()).decode().splitlines())

    again = call("launch", "kubernetes", *SETTINGS)
    assert again.returncode == 93
    assert "which has not ended" in again.stderr

    cluster.requests.clear()
    assert "was told to checkpoint and end" in call("cancel", "mine").stdout
    deleted = [request for request in cluster.requests if request.startswith("DELETE")]
    assert len(deleted) == 2
    assert f"/trainjobs/{name}?propagationPolicy=Foreground" in deleted[0]
    assert not any("gracePeriod" in request for request in deleted)
    assert "nothing runs" in call("cancel", "mine").stdout


def test_cancel_now_ends_the_pods_without_a_grace_period_and_a_job_that_has_ended_makes_room(
    cluster: Cluster, call: Callable[..., "CompletedProcess[str]"]
) -> None:
    launched(call, "launch.kubernetes.kind=jobset")
    name = cluster.only("jobsets")["metadata"]["name"]
    cluster.only("jobsets")["status"] = {"conditions": [
        {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "do-not-retry"}
    ]}  # fmt: skip
    assert "failed: do-not-retry" in call("status", "mine").stdout

    launched(call)
    assert [path.split("/")[-2] for path in cluster.objects] == ["trainingruntimes", "trainjobs"]
    cluster.add_pod(name, "a", {"phase": "Running"}, node="node-a")
    assert "is ended" in call("cancel", "mine", "--now").stdout
    assert cluster.objects == {}
    assert any("/pods/a?gracePeriodSeconds=0" in request for request in cluster.requests)


def test_what_the_server_says_is_the_message(cluster: Cluster, call: Callable[..., "CompletedProcess[str]"]) -> None:
    cluster.refusal = (403, "trainjobs is forbidden: you may not")
    done = call("launch", "kubernetes", *SETTINGS)

    assert done.returncode == 93
    assert "you may not" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_gone_is_one_message_and_status_still_answers(
    call: Callable[..., "CompletedProcess[str]"], tmp_path: Path
) -> None:
    with api_server(tmp_path / "kubeconfig"):
        launched(call)

    done = call("cancel", "mine")
    assert done.returncode == 93, done.stdout
    assert "that the kubeconfig leads to" in done.stderr
    assert "Traceback" not in done.stderr
    assert "not begun" in call("status", "mine").stdout


def test_without_a_cluster_the_message_says_so(tmp_path: Path) -> None:
    done = effnet("launch", "kubernetes", *SETTINGS, cwd=tmp_path, KUBECONFIG="/nowhere", HOME=str(tmp_path))

    assert done.returncode == 93, done.stderr
    assert "that the kubeconfig leads to" in done.stderr
