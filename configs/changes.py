"""What may change between two attempts of one run: nothing of it, what breaks exactness, what makes no sense."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from configs.load import leaves
from configs.problems import Problem, shown
from configs.schema import Config, Data

Kind = Literal["harmless", "inexact", "impossible"]

# What may differ between two attempts of one run without changing a single sample of it.
NOT_IDENTITY: Final = re.compile(
    r"name|run_id|runs_dir|resume\..*|data\.(num_workers|prefetch_batches|index_dir|eval_batch_size|prepare)"
    r"|data\.(cache_dir|cache_bytes|prefetch_shards|download_attempts|download_timeout_s)"
    r"|trainer\.(accelerator|devices|num_nodes|log_every_n_steps|num_threads|channels_last)"
    r"|trainer\.(gradient_checkpointing|deterministic|benchmark|profile_steps)"
    r"|(checkpoint|fault|doctor|tracking|launch)\..*"
)
# What makes another run at the start and yet may change on the way: where shards are kept (the position in a checkpoint
# says which they are), and what only decides how long a run goes on or how often it is looked at.
HARMLESS_LATER: Final = re.compile(
    r"data\.(train_shards|val_shards|eval_image_size|max_bad_fraction)|trainer\.(max_steps|check_val_every_n_epoch)"
)
# What the tensors of a checkpoint have the shape of, or what acts at the start alone.
FIXED: Final = re.compile(
    r"data\.num_classes|optimizer\.opt|deepspeed\.zero_stage|trainer\.strategy"
    r"|model\.(name|compound_phi|width_multiplier|depth_multiplier|in_chans|head_hidden_features)"
    r"|model\.(pretrained|checkpoint_path|stages)"
)
# Settings younger than the first run ids: named in an id where they are not at their default, so that ids stay.
YOUNGER: Final = re.compile(
    r"loss\.(name|bce_.*)|data\.augmentation\.aug_(splits|repeats)|optimizer\.layer_decay|distillation\..*|progressive\..*"
    r"|trainer\.(matmul_precision|compile|ddp_comm_hook|sync_batchnorm)|model\.stages|data\.eval_image_size"
    r"|data\.modality|data\.(audio|text)\..*|deepspeed\.offload_optimizer"
    r"|scheduler\.(decay_milestones|monitor|patience_validations|kwargs)"
)
# What decides when and on what a network is validated, by which the schedule `plateau` goes.
MEASURED: Final = re.compile(r"data\.(val_shards|eval_image_size)|trainer\.check_val_every_n_epoch")
# What decides how many samples BatchNorm sees together where it looks at those of all devices.
DEVICES: Final = re.compile(r"trainer\.(devices|num_nodes)")
UNSPOKEN: Final = re.compile(r"resume\..*|name|run_id|runs_dir")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that differs from what it was, values as they are shown."""

    key: str
    old: str
    new: str
    kind: Kind


def identity(config: Config) -> dict[str, Any]:
    """The settings that define the experiment, by dotted key."""
    defaults = _defaults()
    return {
        key: value
        for key, value in leaves(config).items()
        if not NOT_IDENTITY.fullmatch(key) and not (YOUNGER.fullmatch(key) and value == defaults[key])
    }


def changes(old: Mapping[str, Any], new: Config) -> list[Change]:
    """Settings that differ, in the schema's order.

    Args:
        old: A configuration as `Config.model_dump` gives it, perhaps by an older effnet: what it lacks was as the
            default is.
        new: The configuration now.
    """
    return list(_changes(old, new))


def _changes(old: Mapping[str, Any], new: Config) -> Iterator[Change]:
    defaults = _defaults()
    for key, value in leaves(new).items():
        if UNSPOKEN.fullmatch(key):
            continue
        before = _value(old, key, defaults[key])
        if _plain(key, before) != _plain(key, value):
            kind = _kind(key)
            if key == "optimizer.weight_decay" and 0 in (before, value):
                kind = "impossible"  # with none, timm's optimizers have one group of parameters, else two
            if key == "optimizer.layer_decay" and None in (before, value):
                kind = "impossible"  # with one, a group of parameters for each layer
            if MEASURED.fullmatch(key) and new.scheduler.sched == "plateau":
                kind = "inexact"
            if DEVICES.fullmatch(key) and new.trainer.sync_batchnorm:
                kind = "inexact"
            yield Change(key=key, old=shown(before), new=shown(value), kind=kind)


def refusals(found: list[Change], *, run_id: str, allow: bool) -> list[Problem]:
    """Problems with those changes that a run cannot go on with, unless the user allows what can be."""
    problems = []
    for change in found:
        advice = f"{change.old}: what run {run_id} was started with, or another run_id"
        if change.kind == "impossible":
            problems.append(Problem(key=change.key, received=change.new, accepted=advice))
        elif change.kind == "inexact" and not allow:
            advice += ", or resume.allow_changes=true"
            problems.append(Problem(key=change.key, received=change.new, accepted=advice))
    return problems


def _defaults() -> dict[str, Any]:
    return leaves(Config(data=Data(train_shards="", val_shards="")))


def _kind(key: str) -> Kind:
    if NOT_IDENTITY.fullmatch(key) or HARMLESS_LATER.fullmatch(key):
        return "harmless"
    return "impossible" if FIXED.fullmatch(key) else "inexact"


def _plain(key: str, value: Any) -> str:
    if key == "trainer.strategy" and value in ("auto", "single", "ddp"):
        value = "ddp"  # which of them it is, the number of processes decides
    return json.dumps(value, sort_keys=True)


def _value(tree: Mapping[str, Any], key: str, default: Any) -> Any:
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value
