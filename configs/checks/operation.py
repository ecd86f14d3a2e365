"""Settings of faults and checkpoints that are valid alone and not together."""

from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem
from configs.schema import Config


def fault_problems(config: Config) -> Iterator[Problem]:
    """Times that contradict each other."""
    fault = config.fault
    if fault.hang_timeout_s is not None and fault.hang_timeout_s <= fault.timeout_s / 2:
        accepted = f"null, or more than half of fault.timeout_s = {fault.timeout_s:g}: so long may a save be waited for"
        yield problem_with(config, "fault.hang_timeout_s", accepted, "fault.timeout_s")


def checkpoint_problems(config: Config) -> Iterator[Problem]:
    """What is kept, and where."""
    checkpoint, remote = config.checkpoint, "checkpoint.remote_dir"
    if checkpoint.monitor is not None and checkpoint.keep_best is None:
        accepted = "null: it has an effect with checkpoint.keep_best only"
        yield problem_with(config, "checkpoint.monitor", accepted, "checkpoint.keep_best")
    elif checkpoint.monitor is not None and "ema_" in checkpoint.monitor and not config.ema.enabled:
        accepted = "a metric of the raw weights, such as val/top1, beside ema.enabled = false"
        yield problem_with(config, "checkpoint.monitor", accepted, "ema.enabled")
    if config.tracking.checkpoint_artifacts in ("best", "best_and_last") and checkpoint.keep_best is None:
        accepted = "none, last or all: no best checkpoint is kept"
        yield problem_with(config, "tracking.checkpoint_artifacts", accepted, "checkpoint.keep_best")
    if checkpoint.remote_dir is not None:
        protocol, _, rest = checkpoint.remote_dir.partition("://")
        if protocol in ("http", "https", "hf"):
            yield problem_with(config, remote, "a place that can be written, such as s3://bucket/folder")
        elif not rest.strip("/") or {"..", "."} & set(rest.split("/")):
            yield problem_with(config, remote, "a folder, without . and .. in its path")
