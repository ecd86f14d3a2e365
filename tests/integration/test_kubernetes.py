"""The command that pods run, with what the controller gives them, on hosts with networks of their own: it trains."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from configs.files import read_json
from configs.run import RunDirectory
from launch.kubernetes.pod import JOB_UID, RESTART
from launch.kubernetes.pod_spec import PORT
from tests.clusters.hosts import address, hosts, on_host
from tests.integration.runs import final_state, last_step, logs, losses, train
from tests.integration.test_equivalence import assert_same
from tests.unit.launch.commands import effnet
from tests.unit.launch.kubernetes_schemas import expanded, pod_template

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
NASTY = "it's $(touch pwned) $$(HOME) `touch pwned` 日本"
Overrides = Callable[..., list[str]]


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    with hosts(2):
        yield


@dataclass
class Job:
    """A job as the controllers and kubelets play it: pods by the rendered document, one a host."""

    documents: list[dict[str, Any]]
    run: RunDirectory
    restarts: int = 0
    pods: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self) -> None:
        """Make the Job's pods."""
        (container,) = pod_template(self.documents)["spec"]["containers"]
        uid = str(uuid.uuid4())
        for node_rank in (0, 1):
            variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
            variables = {name: expanded(value, variables) for name, value in variables.items()}
            variables |= {JOB_UID: uid, RESTART: str(self.restarts)}
            # What Kubeflow Trainer's plugin for torch adds. A JobSet says it itself, by names that only a cluster has.
            variables |= {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(node_rank)}
            variables |= {"PET_MASTER_ADDR": address(1), "PET_MASTER_PORT": str(PORT)}
            command = [expanded(word, variables) for word in container["command"]]
            # A container has these of itself: the image has the code, the network one interface.
            image = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
            image |= {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0"}
            with (self.run.path.parent / f"pod-{node_rank}.out").open("ab") as output:
                self.pods.append(
                    subprocess.Popen(
                        on_host(node_rank + 1, *command),
                        cwd=container["workingDir"],
                        env={**image, **variables},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        self.restarts += 1

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while last_step(self.run) < step:
            assert all(pod.poll() is None for pod in self.pods), self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.01)

    def terminate(self, node_rank: int) -> None:
        """Send SIGTERM, once the pod handles it: it may be importing still."""
        pod = self.pods[node_rank]
        deadline = time.monotonic() + TIMEOUT_S
        while not handles(pod.pid, signal.SIGTERM):
            assert pod.poll() is None, self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.01)
        pod.send_signal(signal.SIGTERM)

    def end(self) -> list[int]:
        """Exit codes of the pods, the first host's first."""
        codes = [pod.wait(timeout=TIMEOUT_S) for pod in self.pods]
        self.pods.clear()
        return codes

    def output(self, node_rank: int) -> str:
        """What `kubectl logs` would show, of all pods of this index."""
        return (self.run.path.parent / f"pod-{node_rank}.out").read_text(encoding="utf-8")

    def told(self) -> str:
        return self.output(0) + self.output(1) + logs(self.run)


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, by the mask that Linux shows."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.fixture
def job(toy_overrides: Overrides, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Renders a job with `effnet launch kubernetes --dry-run`; its pods end with the test."""
    jobs: list[Job] = []

    def render(kind: str = "trainjob", **settings: object) -> Job:
        pods_dir = tmp_path / "pods $(touch pwned) 日"
        pods_dir.mkdir()
        settings = {"trainer__devices": 1, "trainer__num_nodes": 2, **settings}
        printed = effnet(
            "launch", "kubernetes", "--dry-run", *toy_overrides(**settings), "run_id=job", "launch.image=effnet:1",
            f"launch.python={sys.executable}", f"launch.kubernetes.kind={kind}",
            f"launch.kubernetes.work_dir='{pods_dir}'",
            f"launch.kubernetes.volumes=[{{path: '{pods_dir}', claim: runs}}]",
            f'launch.environment.NASTY="{NASTY}"',
            cwd=tmp_path, WANDB_API_KEY="0123456789abcdef",
        )  # fmt: skip
        assert printed.returncode == 0, printed.stderr
        assert "0123456789abcdef" not in printed.stdout
        assert not (tmp_path / "runs").exists()
        (pods_dir / "runs").mkdir()
        jobs.append(Job(list(yaml.safe_load_all(printed.stdout)), RunDirectory(pods_dir / "runs/job")))
        return jobs[-1]

    yield render
    for each in jobs:
        for pod in each.pods:
            pod.kill()
            pod.wait()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("kind", ["trainjob", "jobset"])
def test_the_pods_of_two_nodes_train_like_one_process(
    job: Callable[..., Job], toy_overrides: Overrides, tmp_path: Path, kind: str
) -> None:
    one = train(toy_overrides(), runs_dir=tmp_path, run_id="one")
    pods = job(kind)
    pods.start()

    assert pods.end() == [0, 0], pods.told()
    assert len(losses(one)) >= 12
    assert losses(pods.run) == pytest.approx(losses(one), abs=1e-4)
    assert [outcome["exit_class"] for outcome in pods.run.outcomes()] == ["done"]
    origins = read_json(pods.run.origins_file)  # for W&B
    assert origins["trainer.num_nodes"] == origins["data.train_shards"] == "command line"
    assert "trainer.benchmark" not in origins
    # Each pod's output is its ranks' logs.
    assert "0: 20" in pods.output(0)
    assert "1: 20" in pods.output(1)
    assert "1: 20" not in pods.output(0)
    # A pod that comes once more has nothing to do.
    pods.start()
    assert pods.end() == [0, 0], pods.told()
    assert pods.run.attempts == 1


def trainer_of(run: RunDirectory, *, global_rank: int) -> psutil.Process:
    """The training process of a rank, without its parent."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words, rank = process.cmdline(), str(global_rank)
            if str(run.path) in words and "trainer" in words and process.environ()["RANK"] == rank:
                return process
    raise AssertionError(f"no rank {global_rank}")


def test_a_signal_checkpoints_a_death_starts_again_and_the_weights_are_those_of_a_run_never_stopped(
    job: Callable[..., Job], toy_overrides: Overrides, tmp_path: Path
) -> None:
    pods = job(trainer__max_epochs=6)
    pods.start()
    pods.wait_for_step(3)
    pods.terminate(1)  # one pod alone: its node is drained
    assert pods.end() == [85, 85], pods.told()

    pods.start()
    pods.wait_for_step(last_step(pods.run) + 3)
    trainer_of(pods.run, global_rank=1).kill()
    codes = pods.end()
    assert 0 not in codes, pods.told()
    assert not {85, 93} & {*codes}, pods.told()

    pods.start()
    assert pods.end() == [0, 0], pods.told()
    assert [outcome["exit_class"] for outcome in pods.run.outcomes()] == ["interrupted", "retry", "done"]
    assert pods.run.outcomes()[1]["reason"] == "killed by SIGKILL"
    whole = train(toy_overrides(trainer__devices=2, trainer__max_epochs=6), runs_dir=tmp_path, run_id="whole")
    assert losses(pods.run) == losses(whole)
    assert_same(final_state(pods.run), final_state(whole))


def test_a_mistake_ends_the_first_pod_with_93_and_too_many_failures_do(job: Callable[..., Job]) -> None:
    pods = job(data__train_shards="absent-*.tar", launch__max_failures=0)
    pods.start()
    codes = pods.end()
    assert 93 in codes, pods.told()
    pods.start()
    assert pods.pods[0].wait(timeout=TIMEOUT_S) == 93, pods.told()
    pods.terminate(1)
    assert pods.end() == [93, 85], pods.told()
    assert pods.run.attempts == 1
