"""Settings that are valid alone but not together. Each check says which keys it is about."""

from collections.abc import Callable, Iterator

from configs.problems import Problem
from configs.schema import Config

Check = Callable[[Config], Iterator[Problem]]


def cross_problems(config: Config) -> list[Problem]:
    """All combinations in ``config`` that cannot work or have no effect."""
    return [problem for check in CHECKS for problem in check(config)]


def _problem(config: Config, key: str, accepted: str) -> Problem:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return Problem(key=key, received=str(value), accepted=accepted)


def _batches(config: Config) -> Iterator[Problem]:
    data, trainer = config.data, config.trainer
    size, micro = data.global_batch_size, data.micro_batch_size
    if size % micro:
        yield _problem(config, "data.global_batch_size", f"a multiple of data.micro_batch_size = {micro}")
    elif isinstance(trainer.devices, int):
        world_size = trainer.devices * trainer.num_nodes
        if (size // micro) % world_size:
            yield _problem(
                config,
                "data.global_batch_size",
                f"a multiple of micro_batch_size x devices x num_nodes = {micro} x {trainer.devices} x "
                f"{trainer.num_nodes} = {micro * world_size}",
            )
    if size % data.num_lanes:
        yield _problem(config, "data.num_lanes", f"a divisor of data.global_batch_size = {size}")
    if micro % 2 and (config.loss.mixup_alpha or config.loss.cutmix_alpha):
        yield _problem(config, "data.micro_batch_size", "an even number: Mixup and CutMix mix pairs")


def _images(config: Config) -> Iterator[Problem]:
    for key in ("mean", "std"):
        values = getattr(config.data, key)
        if values is not None and len(values) != config.model.in_chans:
            yield _problem(config, f"data.{key}", f"model.in_chans = {config.model.in_chans} values")
    if config.data.crop_pct == 0:
        yield _problem(config, "data.crop_pct", "a share above 0")
    for key in ("scale", "ratio"):
        low, high = getattr(config.data.augmentation, key)
        if low > high:
            yield _problem(config, f"data.augmentation.{key}", "a lower and an upper bound, in that order")
    if config.model.in_chans != 3 and config.data.augmentation.auto_augment:
        yield _problem(config, "data.augmentation.auto_augment", "null: timm's policies work on RGB images")


def _model(config: Config) -> Iterator[Problem]:
    model = config.model
    explicit = model.width_multiplier is not None or model.depth_multiplier is not None
    if model.compound_phi is not None and explicit:
        yield _problem(config, "model.compound_phi", "null beside width_multiplier or depth_multiplier")
    if config.width_and_depth is not None:
        if model.name != "efficientnet_b0":
            yield _problem(config, "model.name", "efficientnet_b0: scaling starts from it")
        if model.pretrained:
            yield _problem(config, "model.pretrained", "false: no weights are published for a scaled network")
    if model.pretrained and model.checkpoint_path is not None:
        yield _problem(config, "model.checkpoint_path", "null beside model.pretrained=true")
    if model.freeze_backbone_epochs >= config.trainer.max_epochs:
        yield _problem(config, "model.freeze_backbone_epochs", f"less than max_epochs = {config.trainer.max_epochs}")


def _schedule(config: Config) -> Iterator[Problem]:
    scheduler = config.scheduler
    if scheduler.warmup_epochs >= config.trainer.max_epochs:
        yield _problem(config, "scheduler.warmup_epochs", f"less than trainer.max_epochs = {config.trainer.max_epochs}")
    if scheduler.sched == "step" and (scheduler.decay_epochs is None or scheduler.decay_rate is None):
        yield _problem(config, "scheduler.sched", "step together with decay_epochs and decay_rate")
    if scheduler.sched != "step" and scheduler.decay_epochs is not None:
        yield _problem(config, "scheduler.decay_epochs", "null: it has an effect with sched=step only")
    if scheduler.sched not in ("step", "poly") and scheduler.decay_rate is not None:
        yield _problem(config, "scheduler.decay_rate", "null: it has an effect with sched=step and sched=poly only")


def _strategy(config: Config) -> Iterator[Problem]:
    trainer, stage = config.trainer, config.deepspeed.zero_stage
    if trainer.strategy == "single" and (trainer.num_nodes > 1 or trainer.devices not in (1, "auto")):
        yield _problem(config, "trainer.strategy", "ddp or deepspeed for more than one device")
    if trainer.accelerator == "cpu" and trainer.precision == "16-mixed":
        yield _problem(config, "trainer.precision", "32-true or bf16-mixed on the CPU")
    if trainer.strategy != "deepspeed":
        if stage is not None:
            yield _problem(config, "deepspeed.zero_stage", f"null with trainer.strategy = {trainer.strategy}")
        return
    if stage is None:
        yield _problem(config, "deepspeed.zero_stage", "1, 2 or 3 with trainer.strategy = deepspeed")
    if config.ema.enabled and stage == 3:
        yield _problem(config, "ema.enabled", "false under ZeRO 3, where no rank holds whole weights")
    if config.ema.enabled and trainer.precision != "32-true":
        yield _problem(config, "ema.enabled", "false under DeepSpeed in 16 bits, which casts the weights averaged")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm == "value":
        yield _problem(config, "trainer.gradient_clip_algorithm", "norm under DeepSpeed")
    if config.model.freeze_backbone_epochs:
        yield _problem(
            config, "model.freeze_backbone_epochs", "0 under DeepSpeed, which fixes what trains at the start"
        )


CHECKS: tuple[Check, ...] = (_batches, _images, _model, _schedule, _strategy)
