"""The job of a configuration: plain data, no secrets."""

from pathlib import Path

import pytest

from configs.problems import ConfigError
from configs.run import config_hash
from launch.job import JobSpec, Mount, job_spec
from tests.unit.configs.loading import config_of, problems_of

WORK_DIR = Path("/home/me/my project")


def spec_of(*overrides: str, environment: dict[str, str] | None = None) -> JobSpec:
    config = config_of("run_id=mine", "trainer.devices=2", "trainer.num_nodes=2", *overrides)
    return job_spec(config, code_dir=Path("/code"), work_dir=WORK_DIR, environment=environment or {})


def test_a_job_says_what_each_node_needs() -> None:
    spec = spec_of("data.num_workers=3", "launch.memory_per_node_gb=64", "launch.time_limit_minutes=90")

    assert (spec.num_nodes, spec.devices, spec.world_size, spec.cpus_per_device) == (2, 2, 4, 4)
    assert (spec.memory_per_node_gb, spec.time_limit_minutes, spec.gpus) == (64, 90, True)
    assert spec.run_dir == WORK_DIR / "runs/mine"
    assert spec.command[1:] == ("-m", "launch.rank", str(spec.run_dir))
    assert not spec_of("trainer.accelerator=cpu").gpus


def test_devices_must_be_a_number() -> None:
    with pytest.raises(ConfigError, match="what a node of the cluster has cannot be seen from here"):
        job_spec(config_of(), code_dir=Path("/code"), work_dir=WORK_DIR, environment={})


def test_variables_are_captured_by_an_allow_list() -> None:
    shell = {
        "NCCL_SOCKET_IFNAME": "ib0",
        "MINE": "1",
        "HOME": "/root",
        "PYTHONPATH": "/elsewhere",
        "WANDB_BASE_URL": "https://wandb.example.org",
        "WANDB_API_KEY": "0123456789",
        "AWS_SECRET_ACCESS_KEY": "x",
        "NCCL_SECRET_KEY": "x",
        "https_proxy": "http://user:password@proxy:3128",
        "http_proxy": "http://proxy:3128",
    }

    spec = spec_of("launch.pass_environment=[MINE]", "launch.environment.THEIRS='2'", environment=shell)

    assert spec.environment == {
        "MINE": "1",
        "NCCL_SOCKET_IFNAME": "ib0",
        "THEIRS": "2",
        "WANDB_BASE_URL": "https://wandb.example.org",
        "http_proxy": "http://proxy:3128",
    }
    assert not any(secret in repr(spec) for secret in ("0123456789", "password", "'x'"))


def test_secrets_in_the_configuration_are_refused() -> None:
    problems = problems_of("launch.environment.WANDB_API_KEY=x", "launch.pass_environment=[HF_TOKEN]")

    assert set(problems) == {"launch.environment", "launch.pass_environment"}
    url = problems_of("launch.environment.https_proxy='http://user:hunter2@proxy:3128'")
    assert set(url) == {"launch.environment"}
    assert "hunter2" not in repr(url)


def test_an_image_sees_the_run_and_what_is_mounted() -> None:
    spec = spec_of("launch.image=effnet:1", "launch.mounts=['/scratch/shards:/data:ro']")

    assert spec.python == "python3"
    assert [mount.source for mount in spec.mounts] == [str(WORK_DIR), "/scratch/shards"]
    assert spec_of("launch.image=effnet:1", "runs_dir=/runs").mounts[-1].source == "/runs/mine"
    assert spec.mounts[-1] == Mount(source="/scratch/shards", target="/data", read_only=True)
    assert "launch.mounts" in problems_of("launch.mounts=['/a:/b']")


@pytest.mark.parametrize("override", ["launch.slurm.options.wrap=x", "launch.slurm.options.'a b'=1"])
def test_options_that_would_break_the_job_are_refused(override: str) -> None:
    assert "launch.slurm.options" in problems_of(override)


def test_where_a_job_runs_is_no_part_of_the_experiment() -> None:
    assert config_hash(config_of()) == config_hash(config_of("launch.max_requeues=1", "launch.slurm.partition=gpu"))
