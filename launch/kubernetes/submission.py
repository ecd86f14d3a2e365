"""``effnet launch kubernetes``: from a configuration to a job on Kubernetes, or the documents that would be sent."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from configs.exit_codes import EXIT_DONE
from configs.files import write_atomically
from configs.load import dump_yaml, load_config
from configs.run import RunDirectory, with_absolute_resume
from launch.engines import refuse_if_submitted
from launch.fit import console, of_run
from launch.job import job_spec, with_preflight
from launch.kubernetes import documents as kubernetes
from launch.kubernetes import jobs as kubernetes_jobs
from launch.kubernetes.pod import ORIGINS
from launch.ledger import Submission, record, withdraw_cancellation
from launch.lock import locked
from launch.snapshot import ROOT


def launch_kubernetes(
    files: Sequence[str], overrides: Sequence[str], run_name: str | None, *, dry_run: bool, preflight: bool = False
) -> int:
    """Submit a run to Kubernetes, or print the documents; returns the exit code.

    The run directory here, which need not be the pods', holds the configuration, the documents and the ledger.

    Raises:
        ConfigError: For any mistake, before anything is written.
    """
    if run_name is not None:
        files, overrides = of_run(run_name, files, overrides)
    resolved = load_config(files, overrides)
    config = resolved.config
    work_dir = Path(config.launch.kubernetes.work_dir or Path.cwd())
    config = with_absolute_resume(config, work_dir)
    spec = job_spec(config, code_dir=ROOT, work_dir=work_dir, environment=os.environ)
    spec = with_preflight(spec) if preflight else spec
    origins = json.dumps(dict(resolved.origins), separators=(",", ":"))
    spec = replace(spec, environment={**spec.environment, ORIGINS: origins})
    kubernetes.check(spec, config)
    run = RunDirectory(Path.cwd() / RunDirectory.of(config).path)
    run.check(config)
    documents = kubernetes.render(spec, config.launch.kubernetes, dump_yaml(config))
    text = kubernetes.to_yaml(documents)
    if dry_run:
        sys.stdout.write(text)
        return EXIT_DONE
    run.create()
    with locked(run):
        refuse_if_submitted(run, engine="kubernetes")
        run.freeze(config)
        run.keep_origins(resolved.origins)
        run.launch_dir.mkdir(exist_ok=True)
        artefact = run.launch_dir / "kubernetes.yaml"
        job_id = kubernetes_jobs.submit(documents)
        write_atomically(artefact, text)
        withdraw_cancellation(run)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record(run, Submission(time=now, engine="kubernetes", job_id=job_id, artefact=str(artefact)))
    said = f"{run.run_id}: {job_id}\nnext\n"
    said += "".join(f"  effnet {verb} {run.path}\n" for verb in ("status", "logs --follow", "cancel"))
    console.print(said, highlight=False, markup=False, end="")
    return EXIT_DONE
