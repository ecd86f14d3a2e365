"""Settings of training that are valid alone and not together."""

import re
from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem, shown
from configs.schema import Config, Distillation, Scheduler

SCHEDULE_SETTINGS = {
    "decay_epochs": ("step", "wsd", "rsqrt"),
    "decay_milestones": ("multistep",),
    "decay_rate": ("step", "multistep", "poly", "plateau"),
    "monitor": ("plateau",),
    "patience_validations": ("plateau",),
}
"""The schedules that a setting has an effect with."""
SCHEDULE_ARGUMENTS = {
    "cycle_mul": ("cosine", "tanh", "poly"),
    "cycle_decay": ("cosine", "tanh", "poly"),
    "cycle_limit": ("cosine", "tanh", "poly"),
    "k_decay": ("cosine", "poly"),
    "decay_fn": ("wsd", "rsqrt"),
    "stable_timescale": ("rsqrt",),
}
"""The schedules that take an argument."""
DECAY_FUNCTIONS = ("linear", "1-sqrt", "cosine", "power", "exp")
"""timm's, of wsd and rsqrt."""
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that replay them."""
LAYERWISE = re.compile(r"^c|lamb|lar[cs]|muon|kron|adafactor|novograd|adamp|sgdp|mars")
"""Part of the names of timm's optimizers that look at a layer as a whole (trust ratios, matrices, cautious masks)."""
OWN_SETTINGS = ("lr", "weight_decay", "momentum")
"""Arguments of an optimizer that are settings of their own."""


def loss_problems(config: Config) -> Iterator[Problem]:
    """Losses, their settings, and views of samples."""
    loss, augmentation = config.loss, config.data.augmentation
    splits = "data.augmentation.aug_splits"
    for name, off, given in (
        ("bce_target_thresh", "null", loss.bce_target_thresh is not None),
        ("bce_sum", "false", loss.bce_sum),
    ):
        if given and loss.name != "bce":
            yield problem_with(
                config, f"loss.{name}", f"{off}: it has an effect with loss.name = bce only", "loss.name"
            )
    if loss.name != "jsd":
        if augmentation.aug_splits is not None:
            yield problem_with(config, splits, "null without loss.name = jsd, which compares views", "loss.name")
        return
    if augmentation.aug_splits is None:
        yield problem_with(config, "loss.name", f"jsd together with {splits}, such as 3", splits)
    elif not (augmentation.enabled and (augmentation.auto_augment or augmentation.color_jitter)):
        beside = [f"data.augmentation.{name}" for name in ("enabled", "auto_augment", "color_jitter")]
        yield problem_with(config, splits, "null, or auto_augment such as augmix-m3-w3 by which views differ", *beside)
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(loss, name):
            yield problem_with(config, f"loss.{name}", "0 beside loss.name = jsd: views are of one class", "loss.name")


def distillation_problems(config: Config) -> Iterator[Problem]:
    """Settings of a teacher that is none."""
    distillation, teacher = config.distillation, "distillation.teacher"
    for name, field in Distillation.model_fields.items():
        if distillation.teacher is None and getattr(distillation, name) != field.default:
            accepted = f"{shown(field.default)}: without distillation.teacher it has no effect"
            yield problem_with(config, f"distillation.{name}", accepted, teacher)
    if distillation.teacher is not None and distillation.kind == "hard" and distillation.temperature != 1:
        accepted = "1.0: it has an effect with distillation.kind = soft only"
        yield problem_with(config, "distillation.temperature", accepted, "distillation.kind")


def optimizer_problems(config: Config) -> Iterator[Problem]:
    """Arguments that are settings of their own."""
    for name in sorted(config.optimizer.kwargs.keys() & set(OWN_SETTINGS)):
        accepted = f"arguments that are no settings of their own: {name} is optimizer.{name}"
        yield problem_with(config, "optimizer.kwargs", accepted)


def schedule_problems(config: Config) -> Iterator[Problem]:
    """Schedules and the settings that each goes by."""
    scheduler = config.scheduler
    sched, epochs, rate = "scheduler.sched", "scheduler.decay_epochs", "scheduler.decay_rate"
    if scheduler.warmup_epochs >= config.trainer.max_epochs:
        accepted = f"less than trainer.max_epochs = {config.trainer.max_epochs}"
        yield problem_with(config, "scheduler.warmup_epochs", accepted, "trainer.max_epochs")
    kind = scheduler.sched
    if kind == "step" and (scheduler.decay_epochs is None or scheduler.decay_rate is None):
        yield problem_with(config, sched, "step together with decay_epochs and decay_rate", epochs, rate)
    if kind == "multistep" and (not scheduler.decay_milestones or scheduler.decay_rate is None):
        accepted = "multistep together with decay_milestones and decay_rate"
        yield problem_with(config, sched, accepted, "scheduler.decay_milestones", rate)
    if kind == "plateau" and (scheduler.decay_rate is None or scheduler.decay_rate >= 1):
        yield problem_with(config, sched, "plateau together with a decay_rate below 1", rate)
    for name, kinds in SCHEDULE_SETTINGS.items():
        default = Scheduler.model_fields[name].default
        if kind not in kinds and getattr(scheduler, name) != default:
            accepted = f"{shown(default)}: it has an effect with sched = {' or '.join(kinds)} only"
            yield problem_with(config, f"scheduler.{name}", accepted, sched)
    if list(scheduler.decay_milestones) != sorted(set(scheduler.decay_milestones)):
        yield problem_with(config, "scheduler.decay_milestones", "epochs, each later than the one before it")
    for name, value in scheduler.kwargs.items():
        problem = _schedule_argument(kind, name, value)
        if problem is not None:
            yield Problem(key="scheduler.kwargs", received=f"{name}: {shown(value)}", accepted=problem, beside=(sched,))
            break
    if scheduler.monitor is not None and "ema_" in scheduler.monitor and not config.ema.enabled:
        accepted = "a metric of the raw weights, such as val/top1, beside ema.enabled = false"
        yield problem_with(config, "scheduler.monitor", accepted, "ema.enabled")
    after = config.trainer.max_epochs - scheduler.warmup_epochs
    if kind in ("wsd", "rsqrt") and (scheduler.decay_epochs or 0) > after > 0:
        accepted = f"at most the {after:g} epochs of trainer.max_epochs that follow the warm-up"
        yield problem_with(config, epochs, accepted, sched, "scheduler.warmup_epochs", "trainer.max_epochs")
    if kind == "rsqrt" and not scheduler.warmup_epochs and "stable_timescale" not in scheduler.kwargs:
        accepted = "above 0, or scheduler.kwargs={stable_timescale: …}: rsqrt takes one of them for its time scale"
        yield problem_with(config, "scheduler.warmup_epochs", accepted, sched, "scheduler.kwargs")


def _schedule_argument(kind: str, name: str, value: object) -> str | None:
    """What is accepted in place of an argument of a schedule; None if it is right."""
    if kind not in SCHEDULE_ARGUMENTS.get(name, ()):
        known = [key for key, kinds in SCHEDULE_ARGUMENTS.items() if kind in kinds]
        return f"arguments of {kind}: {', '.join(known) or 'it has none'}"
    if name == "decay_fn":
        return None if value in DECAY_FUNCTIONS else f"decay_fn: {', '.join(DECAY_FUNCTIONS)}"
    if name == "cycle_limit":
        return None if type(value) is int and value > 0 else "cycle_limit: a whole number above 0"
    return None if type(value) in (int, float) and value > 0 else f"{name}: a number above 0"  # type: ignore[operator]


def graph_problems(config: Config, world_size: int) -> Iterator[Problem]:
    """What CUDA graphs cannot do: a replay takes back the memory of the gradients that the one before has left."""
    data, trainer = config.data, config.trainer
    if trainer.compile in CUDA_GRAPHS and data.global_batch_size > data.micro_batch_size * world_size:
        accepted = "null, default or max-autotune-no-cudagraphs where a device takes several micro-batches a step"
        others = ("data.global_batch_size", "data.micro_batch_size", "trainer.devices", "trainer.num_nodes")
        yield problem_with(config, "trainer.compile", accepted, *others)


def strategy_problems(config: Config) -> Iterator[Problem]:
    """What a strategy, a precision or a device cannot do."""
    trainer, stage, offloads = config.trainer, config.deepspeed.zero_stage, config.deepspeed.offload_optimizer
    if trainer.strategy == "single" and (trainer.num_nodes > 1 or trainer.devices not in (1, "auto")):
        accepted = "ddp or deepspeed for more than one device"
        yield problem_with(config, "trainer.strategy", accepted, "trainer.devices", "trainer.num_nodes")
    if trainer.gradient_clip_algorithm != "norm" and trainer.gradient_clip_val is None:
        accepted = "norm, or a gradient_clip_val beside it"
        yield problem_with(config, "trainer.gradient_clip_algorithm", accepted, "trainer.gradient_clip_val")
    if trainer.accelerator == "cpu" and trainer.precision == "16-mixed":
        yield problem_with(config, "trainer.precision", "32-true or bf16-mixed on the CPU", "trainer.accelerator")
    if trainer.compile is not None and trainer.gradient_checkpointing:
        accepted = "false beside trainer.compile, which decides by itself what is computed again"
        yield problem_with(config, "trainer.gradient_checkpointing", accepted, "trainer.compile")
    if trainer.compile not in (None, "default") and trainer.accelerator == "cpu":
        accepted = "null or default beside trainer.accelerator = cpu: the other modes tune CUDA's kernels and launches"
        yield problem_with(config, "trainer.compile", accepted, "trainer.accelerator")
    elif isinstance(trainer.devices, int):
        yield from graph_problems(config, trainer.devices * trainer.num_nodes)
    if trainer.matmul_precision is not None and trainer.accelerator == "cpu":
        accepted = "null beside trainer.accelerator = cpu"
        yield problem_with(config, "trainer.matmul_precision", accepted, "trainer.accelerator")
    if trainer.profile_steps is not None and trainer.profile_steps[0] > trainer.profile_steps[1]:
        yield problem_with(config, "trainer.profile_steps", "a first and a last step, in that order")
    if trainer.ddp_comm_hook is not None and trainer.strategy in ("single", "deepspeed"):
        accepted = f"null with trainer.strategy = {trainer.strategy}: it is for DDP's gradients"
        yield problem_with(config, "trainer.ddp_comm_hook", accepted, "trainer.strategy")
    elif trainer.ddp_comm_hook is not None and trainer.devices == 1 and trainer.num_nodes == 1:
        accepted = "null on one device, whose gradients are sent nowhere"
        yield problem_with(config, "trainer.ddp_comm_hook", accepted, "trainer.devices", "trainer.num_nodes")
    if trainer.sync_batchnorm:
        yield from _sync_batchnorm(config)
    if trainer.strategy == "deepspeed":
        yield from _deepspeed(config)
        return
    for name, given, off in (("zero_stage", stage is not None, "null"), ("offload_optimizer", offloads, "false")):
        if given:
            accepted = f"{off} with trainer.strategy = {trainer.strategy}"
            yield problem_with(config, f"deepspeed.{name}", accepted, "trainer.strategy")


def _sync_batchnorm(config: Config) -> Iterator[Problem]:
    trainer, key = config.trainer, "trainer.sync_batchnorm"
    if trainer.strategy == "single" or (trainer.devices == 1 and trainer.num_nodes == 1):
        accepted = "false on one device, which has no others to ask"
        yield problem_with(config, key, accepted, "trainer.strategy", "trainer.devices", "trainer.num_nodes")
    if trainer.compile is not None:
        accepted = "false beside trainer.compile: the compiled network would stop at each layer to ask other devices"
        yield problem_with(config, key, accepted, "trainer.compile")
    if trainer.strategy == "deepspeed" and trainer.precision != "32-true":
        accepted = "false under DeepSpeed in 16 bits, which casts the layers' weights and not their statistics"
        yield problem_with(config, key, accepted, "trainer.strategy", "trainer.precision")


def _deepspeed(config: Config) -> Iterator[Problem]:
    trainer, stage = config.trainer, config.deepspeed.zero_stage
    strategy = "trainer.strategy"
    if LAYERWISE.search(config.optimizer.opt.lower().removeprefix("lookahead_")):
        accepted = "one that treats each weight alone, such as adamw: ZeRO lays the weights of all layers end to end"
        yield problem_with(config, "optimizer.opt", accepted, strategy)
    if stage is None:
        yield problem_with(config, "deepspeed.zero_stage", "1, 2 or 3 with trainer.strategy = deepspeed", strategy)
    if config.ema.enabled and stage == 3:
        accepted = "false under ZeRO 3, where no rank holds whole weights"
        yield problem_with(config, "ema.enabled", accepted, strategy, "deepspeed.zero_stage")
    if config.ema.enabled and trainer.precision != "32-true":
        accepted = "false under DeepSpeed in 16 bits, which casts the weights averaged"
        yield problem_with(config, "ema.enabled", accepted, strategy, "trainer.precision")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm != "norm":
        accepted = "norm under DeepSpeed, which clips its parts of the gradient by itself"
        yield problem_with(config, "trainer.gradient_clip_algorithm", accepted, strategy, "trainer.gradient_clip_val")
    if trainer.compile is not None:
        accepted = "null under DeepSpeed, whose hooks gather and part what a compiled network would hold on to"
        yield problem_with(config, "trainer.compile", accepted, strategy)
    if config.model.freeze_backbone_epochs:
        accepted = "0 under DeepSpeed, which fixes what trains at the start"
        yield problem_with(config, "model.freeze_backbone_epochs", accepted, strategy)
