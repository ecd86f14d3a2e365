"""The batch script: what is rendered, and that a real shell runs it as it is meant, whatever the values are."""

import os
import subprocess
from pathlib import Path

import pytest

from configs.problems import ConfigError
from launch.job import job_spec
from launch.slurm.script import render
from tests.unit.configs.loading import config_of, problems_of

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = (
    "run_id=b0",
    "trainer.devices=4",
    "trainer.num_nodes=2",
    "data.global_batch_size=512",
    "data.num_workers=12",
    "launch.python=/opt/effnet/bin/python",
    "launch.time_limit_minutes=1440",
    "launch.memory_per_node_gb=400",
    "launch.slurm.account=vision",
    "launch.slurm.partition='gpu,gpu-long'",
    "launch.slurm.qos=normal",
    "launch.slurm.constraint='h100&ib'",
    "launch.slurm.reservation=maintenance",
    "launch.slurm.modules=[cuda/13.0]",
    "launch.slurm.options.exclusive=true",
    "launch.slurm.options.mail-type=FAIL",
)
SHAPES = {
    "slurm_task_per_device.sh": (),
    "slurm_elastic.sh": ("launch.slurm.elastic=true", "launch.slurm.min_nodes=1"),
    "slurm_pyxis.sh": ("launch.image='registry.example.org#effnet:1'", "launch.mounts=['/scratch/imagenet:/data:ro']"),
    "slurm_apptainer.sh": ("launch.image=/images/effnet.sif", "launch.slurm.container=apptainer"),
}
NASTY = "a b\"c'd$(touch pwned)`touch pwned`\\;&|>\n#SBATCH --nodes=9\n日 %j"


def rendered(*overrides: str, environment: dict[str, str] | None = None, work_dir: Path = Path("/home/me")) -> str:
    config = config_of(*CLUSTER, *overrides)
    shell = {"NCCL_IB_HCA": "mlx5", "WANDB_API_KEY": "0123", **(environment or {})}
    code_dir = work_dir / "runs/b0/launch/code-0123456789ab"
    return render(job_spec(config, code_dir=code_dir, work_dir=work_dir, environment=shell), config.launch.slurm)


@pytest.mark.parametrize("name", SHAPES)
def test_the_script_is_the_one_that_was_reviewed(name: str) -> None:
    """After a change that is meant: EFFNET_RENEW_GOLDEN=1 pytest, and read the difference."""
    script = rendered(*SHAPES[name])
    if "EFFNET_RENEW_GOLDEN" in os.environ:
        (GOLDEN / name).write_text(script, encoding="utf-8")

    assert script == (GOLDEN / name).read_text(encoding="utf-8")
    assert "0123\n" not in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("name", SHAPES)
def test_a_real_shell_passes_every_value_on_unchanged_and_runs_none(name: str, tmp_path: Path) -> None:
    """Programs of the cluster are played by scripts that note their arguments and NASTY."""
    work_dir = tmp_path / "it's $(touch pwned) 日"
    work_dir.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    note = '#!/bin/bash\nprintf "%s\\0" "$(basename "$0")" "$@" "$NASTY" "$PYTHONPATH" >> "$NOTES"\n'
    for program in ("srun", "apptainer", "python $(x)"):
        (programs / program).write_text(note + '[[ " $* " == *" begin "* ]] && echo "3 4711"\nexit 0\n')
    (programs / "scontrol").write_text('#!/bin/bash\n[[ $1 == show ]] && printf "node7\\nnode8\\n"\n')
    (programs / "module").write_text("#!/bin/bash\n")
    for program in programs.iterdir():
        program.chmod(0o755)

    image = ("launch.image='my image $(touch pwned)'",) if "image" in "".join(SHAPES[name]) else ()
    python = f"launch.python='{programs}/python $(x)'"
    script = rendered(*SHAPES[name], *image, python, work_dir=work_dir, environment={"NCCL_NASTY": NASTY})
    script = script.replace("NCCL_NASTY", "NASTY")
    notes = tmp_path / "notes"
    variables = {"PATH": f"{programs}:/usr/bin:/bin", "NOTES": str(notes), "SLURM_JOB_NODELIST": "node[7-8]",
                 "SLURM_JOB_ID": "12"}  # fmt: skip
    done = subprocess.run(["bash"], input=script, env=variables, cwd=tmp_path, text=True, capture_output=True)

    assert done.returncode == 0, done.stderr
    words = notes.read_text().split("\0")
    assert words.count(NASTY) == 3  # begin, the training step, end
    assert words.count(str(work_dir / "runs/b0")) == 3
    assert words.count(f"{programs}/python $(x)") >= 1
    assert str(work_dir / "runs/b0/launch/code-0123456789ab") in words
    if image and "pyxis" in name:
        assert words.count("--container-image=my image $(touch pwned)") == 3
    if "elastic" in name:
        assert "--rdzv-endpoint=node7:4711" in words
        assert "--rdzv-id=12-3" in words
    assert not list(tmp_path.rglob("pwned"))


def test_directives_come_before_the_first_command_and_no_value_makes_one() -> None:
    script = rendered(environment={"NCCL_NASTY": NASTY})
    head, _, rest = script.partition("\nset -u")

    assert "--nodes=2" in head
    assert "--nodes=9" not in head
    assert "--nodes=9" in rest


def test_what_slurm_cannot_be_told_is_refused() -> None:
    for name in ("m\\e", "m%j", "m\ne"):
        with pytest.raises(ConfigError, match="a path without backslash"):
            rendered(work_dir=Path("/home") / name)
    with pytest.raises(ConfigError, match="a container mounts them"):
        rendered("launch.image=x", work_dir=Path("/home/a:b"))
    assert "launch.slurm.partition" in problems_of('launch.slurm.partition="a\\nb"')
