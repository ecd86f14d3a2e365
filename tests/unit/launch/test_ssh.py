"""Launching over ssh: the hosts, what is rendered for them, and what a preflight makes of what they say."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.problems import ConfigError
from launch.job import job_spec
from launch.ssh.facts import Listener, facts, nic_with, reach
from launch.ssh.host import MARK
from launch.ssh.hostfile import Host, hosts_of
from launch.ssh.preflight import problems_of
from launch.ssh.rendering import render
from tests.unit.configs.loading import config_of
from tests.unit.configs.loading import problems_of as problems_of_config
from tests.unit.launch.commands import MINIMAL, effnet

GOLDEN = Path(__file__).parent / "golden"
JOB = (
    "run_id=b0",
    "trainer.devices=4",
    "trainer.num_nodes=2",
    "data.global_batch_size=512",
    "launch.python=/opt/effnet/bin/python",
    "launch.ssh.hosts=['node1 slots=8', me@node2]",
)
ONE = ("trainer.devices=1", "trainer.num_nodes=1", "launch.ssh.hosts=[node1]")
SHAPES = {
    "ssh_two_hosts.json": (),
    "ssh_settings.json": (
        "launch.ssh.config_file=/etc/cluster/ssh",
        "launch.ssh.master_addr=10.0.0.1",
        "launch.ssh.master_port=29500",
        "launch.ssh.lost_after_s=60",
    ),
    "ssh_one_rank.json": ONE,
}
NASTY = "a b\"c'd$(touch pwned)`touch pwned`\\;&|>\n日 %h"


def rendered(*overrides: str, environment: dict[str, str] | None = None, work_dir: Path = Path("/home/me")) -> str:
    config = config_of(*JOB, *overrides)
    shell = {"NCCL_IB_HCA": "mlx5", "WANDB_API_KEY": "0123", **(environment or {})}
    code_dir = work_dir / "runs/b0/launch/code-0123456789ab"
    spec = job_spec(config, code_dir=code_dir, work_dir=work_dir, environment=shell)
    return render(spec, config.launch.ssh, hosts_of(config))


# Rendering


@pytest.mark.parametrize("name", SHAPES)
def test_the_artefact_is_the_one_that_was_reviewed(name: str) -> None:
    """After a change that is meant: EFFNET_RENEW_GOLDEN=1 pytest, and read the difference."""
    plan = rendered(*SHAPES[name])
    if "EFFNET_RENEW_GOLDEN" in os.environ:
        (GOLDEN / name).write_text(plan, encoding="utf-8")

    assert plan == (GOLDEN / name).read_text(encoding="utf-8")
    assert '"0123"' not in plan


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_hosts_shell_runs_the_interpreter_with_paths_as_they_are(shell: str, tmp_path: Path) -> None:
    work_dir = tmp_path / NASTY.replace("/", "")
    work_dir.mkdir()
    python = work_dir / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@" "$PYTHONPATH"\n')
    python.chmod(0o755)
    plan = json.loads(rendered(f"launch.python={json.dumps(str(python))}", work_dir=work_dir))
    command = plan["hosts"][0]["ssh"]

    done = subprocess.run([shell, "-c", command[-1]], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert command[-3:-1] == ["--", "node1"]
    assert done.stdout.split("\0")[:-1] == ["-m", "launch.ssh.host", f"{work_dir}/runs/b0/launch/code-0123456789ab"]
    assert not list(tmp_path.rglob("pwned"))
    # What else is configured is in no text for a shell.
    assert json.loads(rendered(environment={"NCCL_NASTY": NASTY}))["environment"]["NCCL_NASTY"] == NASTY
    assert NASTY not in shlex.join(json.loads(rendered(environment={"NCCL_NASTY": NASTY}))["hosts"][0]["ssh"])


def test_ssh_without_a_container_refuses_an_image() -> None:
    with pytest.raises(ConfigError, match="runs on the hosts themselves"):
        rendered("launch.image=x.sif")


def test_a_dry_run_prints_the_artefact_and_writes_nothing(tmp_path: Path) -> None:
    hosts = ("trainer.num_nodes=2", "trainer.devices=1", "launch.ssh.hosts=[node1, node2]")
    arguments = ("--dry-run", *MINIMAL, *hosts, "run_id=mine")
    done = effnet("launch", "ssh", *arguments, cwd=tmp_path, WANDB_API_KEY="0123456789")

    assert (done.returncode, done.stderr) == (0, "")
    assert [host["host"] for host in json.loads(done.stdout)["hosts"]] == ["node1", "node2"]
    assert "0123456789" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_without_ssh_a_launch_says_so(tmp_path: Path) -> None:
    hosts = ("trainer.num_nodes=1", "trainer.devices=1", "launch.ssh.hosts=[node1]")
    done = effnet("launch", "ssh", *MINIMAL, *hosts, cwd=tmp_path, PATH="/nowhere")

    assert done.returncode == 93
    assert "no ssh here" in done.stderr
    assert not list(tmp_path.iterdir())


# Hosts


def test_a_hostfile_names_hosts_and_slots(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# the cluster\nnode1 slots=8\n\n  me@10.0.0.2   slots=4  # the old one\n")

    config = config_of(*JOB, "launch.ssh.hosts=[]", f"launch.ssh.hostfile={file}")

    assert hosts_of(config) == (Host(name="node1", slots=8), Host(name="me@10.0.0.2", slots=4))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["launch.ssh.hosts=[]"], "launch.ssh.hostfile"),
        (["launch.ssh.hosts=[-oProxyCommand=x, node2]"], "HOST or HOST slots=N"),
        (["launch.ssh.hosts=['node1;x', node2]"], "HOST or HOST slots=N"),
        (["launch.ssh.hosts=['node1 slots=0', node2]"], "HOST or HOST slots=N"),
        (["launch.ssh.hosts=[node1, node1]"], "each host once"),
        (["launch.ssh.hosts=[node1, node2, node3]"], "3, the hosts of launch.ssh: node1, node2, node3"),
        (["launch.ssh.hosts=[node1, 'node2 slots=3']"], "at most 3, the slots of node2"),
        (["launch.ssh.hosts=[]", "launch.ssh.hostfile=/absent"], "a file of lines HOST slots=N"),
    ],
)
def test_hosts_that_cannot_be_meant_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hosts_of(config_of(*JOB, *overrides))

    assert says in str(caught.value)


def test_a_mistake_in_a_hostfile_is_found_in_its_line(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("node1\nnode2 slots=many\n")
    with pytest.raises(ConfigError) as caught:
        hosts_of(config_of(*JOB, "launch.ssh.hosts=[]", f"launch.ssh.hostfile={file}"))

    assert f"({file}:2)" in str(caught.value)
    assert "launch.ssh.hostfile" in problems_of_config("launch.ssh.hosts=[a]", "launch.ssh.hostfile=b")


# Preflight

FINE = {
    "code": "/code", "code_hash": "0123", "token": "t", "may_write": True, "has_work_dir": True, "python": "3.12.1",
    "torch": "2.11.0", "gpus": 8, "busy_gpus": {}, "time": 1000.2, "received": 1000.3, "address": "10.0.0.1",
}  # fmt: skip


def found(accelerator: str = "auto", **second: object) -> list[str]:
    """Problems of two hosts, the second of which differs."""
    config = config_of(*JOB)
    spec = job_spec(config, code_dir=Path("/code"), work_dir=Path("/home/me"), environment={})
    hosts = {"node1": FINE, "node2": FINE | second}
    expected = {"code_hash": "0123", "token": "t"}
    return [
        f"{problem.key}: {problem.received}"
        for problem in problems_of(hosts, expected=expected, spec=spec, accelerator=accelerator)
    ]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({}, []),
        ({"code_hash": "4567"}, ["node2: code 4567 in /code"]),
        ({"token": None}, ["node2: nothing that was written here just now"]),
        ({"token": "u"}, ["node2: another folder"]),
        ({"may_write": False}, ["node2: no right to write"]),
        ({"has_work_dir": False}, ["node2: no such folder"]),
        ({"python": "3.11.9", "torch": "2.12.0"}, ["node2: python 3.11.9", "node2: torch 2.12.0"]),
        ({"gpus": 3}, ["node2: 3 GPUs"]),
        ({"gpus": 0}, ["node2: 0 GPUs"]),
        ({"busy_gpus": {str(n): "77" for n in range(4)}}, []),
        ({"gpus": 4, "busy_gpus": {"2": "77"}}, ["node2: in use: GPU 2 by process 77"]),
        ({"time": 1012.3}, ["node2: a clock 12.0 s ahead"]),
        ({"time": 988.3}, ["node2: a clock 12.0 s behind"]),
    ],
)
def test_what_keeps_a_host_from_training_is_told_with_its_name(second: dict[str, object], says: list[str]) -> None:
    assert found(**second) == says


def test_gpus_do_not_matter_where_the_cpu_trains() -> None:
    assert found("cpu", gpus=0, busy_gpus={"0": "77"}) == []


# What a host says


def test_a_host_says_what_it_is(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    before = time.time()
    known = facts(token_file=token, work_dir=tmp_path / "absent")

    assert (known["token"], known["may_write"], known["has_work_dir"]) == ("t", True, False)
    assert known["python"] == ".".join(map(str, sys.version_info[:3]))
    assert known["torch"].startswith("2.")
    assert before <= known["time"] <= time.time()


def test_busy_gpus_are_those_that_a_rank_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n--query-gpu*) printf '0, GPU-a\\n1, GPU-b\\n' ;;\n"
        "--query-compute*) printf 'GPU-b, 4711\\n' ;;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    token = tmp_path / "token"
    token.write_text("t")
    assert facts(token_file=token, work_dir=tmp_path)["busy_gpus"] == {"1": "4711"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert facts(token_file=token, work_dir=tmp_path)["busy_gpus"] == {}


def test_hosts_meet_at_a_port_that_is_free_again_at_once() -> None:
    listener = Listener("127.0.0.1", 0, "token")
    assert listener.nic == "lo"
    assert reach("127.0.0.1", listener.port) == ("127.0.0.1", "lo", "token")
    listener.close()

    Listener("127.0.0.1", listener.port, "again").close()
    assert nic_with("192.0.2.1") is None


# A session


def test_a_session_ends_with_its_standard_input_and_leaves_nothing(tmp_path: Path) -> None:
    """The ranks have started a process under a session of its own, which would outlive them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.ssh.host"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    note = tmp_path / "note"
    code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600'], start_new_session=True); "
    code += "open(sys.argv[1], 'w').write(str(p.pid)); time.sleep(600)"
    start = {
        "do": "start", "command": [sys.executable, "-c", code, str(note)], "environment": {}, "nic": None,
        "log_dir": str(tmp_path), "log_name": "host.log", "session": f"s-{os.getpid()}", "work_dir": str(tmp_path),
        "world_size": 2,
    }  # fmt: skip
    process.stdin.write(json.dumps(start) + "\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    orphan = Path("/proc") / note.read_text() / "cmdline"
    assert orphan.read_bytes()
    process.stdin.close()

    assert process.wait(timeout=60) == 1
    assert json.loads(process.stdout.read().removeprefix(MARK)) == {"ended": -9}
    assert not orphan.exists() or not orphan.read_bytes()


def test_a_session_without_word_from_its_launcher_ends() -> None:
    process = subprocess.Popen([sys.executable, "-m", "launch.ssh.host"], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"do": "ask", "token_file": "/", "work_dir": "/", "lease_s": 1}) + "\n")
    process.stdin.flush()

    assert process.wait(timeout=60) == 1
    process.stdin.close()
