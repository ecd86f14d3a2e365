"""Settings that are valid alone but not together. Each problem names the settings that it is about."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from configs.problems import Problem, shown
from configs.progressive import stage_configs, stage_problems
from configs.schema import Augmentation, Config, Distillation, Scheduler, Stage

Check = Callable[[Config], Iterator[Problem]]

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|SIGNATURE", re.IGNORECASE)
"""Part of the name of a variable that holds a secret."""
URL_SECRET = re.compile(
    r"://[^/@]*@|[?&](sig|[^=&]*(key|token|secret|passw|credential|signature)[^=&]*)=", re.IGNORECASE
)
"""Part of a URL that holds a secret: a name and password before the host, or a signature or token in the query."""
OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
OWN_OPTIONS = (
    "account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "export", "job-name", "nodes",
    "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos", "requeue", "no-requeue",
    "reservation", "signal", "test-only", "time", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch that follow from other settings, or would break the job."""
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
LAYERWISE = re.compile(r"^c|lamb|lar[cs]|muon|kron|adafactor|novograd|adamp|sgdp|mars")
"""Part of the names of timm's optimizers that look at a layer as a whole (trust ratios, matrices, cautious masks)."""
OWN_SETTINGS = ("lr", "weight_decay", "momentum")
"""Arguments of an optimizer that are settings of their own."""


def cross_problems(config: Config) -> list[Problem]:
    """All combinations in ``config`` that cannot work or have no effect."""
    return [problem for check in CHECKS for problem in check(config)]


def _problem(config: Config, key: str, accepted: str, *beside: str) -> Problem:
    """A problem with ``key``, given the settings ``beside`` it."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return Problem(key=key, received=shown(value), accepted=accepted, beside=beside)


def _faults(config: Config) -> Iterator[Problem]:
    fault = config.fault
    if fault.hang_timeout_s is not None and fault.hang_timeout_s <= fault.timeout_s / 2:
        accepted = f"null, or more than half of fault.timeout_s = {fault.timeout_s:g}: so long may a save be waited for"
        yield _problem(config, "fault.hang_timeout_s", accepted, "fault.timeout_s")


def _batches(config: Config) -> Iterator[Problem]:
    data, trainer = config.data, config.trainer
    size, micro = data.global_batch_size, data.micro_batch_size
    if size % micro:
        accepted = f"a multiple of data.micro_batch_size = {micro}"
        yield _problem(config, "data.global_batch_size", accepted, "data.micro_batch_size")
    elif isinstance(trainer.devices, int) and (size // micro) % (trainer.devices * trainer.num_nodes):
        yield _problem(
            config,
            "data.global_batch_size",
            f"a multiple of micro_batch_size x devices x num_nodes = {micro} x {trainer.devices} x "
            f"{trainer.num_nodes} = {micro * trainer.devices * trainer.num_nodes}",
            "data.micro_batch_size",
            "trainer.devices",
            "trainer.num_nodes",
        )
    if size % data.num_lanes:
        accepted = f"a divisor of data.global_batch_size = {size}"
        yield _problem(config, "data.num_lanes", accepted, "data.global_batch_size")
    if micro % 2 and (config.loss.mixup_alpha or config.loss.cutmix_alpha):
        accepted = "an even number: Mixup and CutMix mix pairs"
        yield _problem(config, "data.micro_batch_size", accepted, "loss.mixup_alpha", "loss.cutmix_alpha")


def _addresses(config: Config) -> Iterator[Problem]:
    for key in ("train_shards", "val_shards"):
        shards = getattr(config.data, key)
        for text in (shards,) if isinstance(shards, str) else shards:
            if URL_SECRET.search(text):
                masked = re.sub(r"://[^/@]*@", "://…@", text).partition("?")[0]
                accepted = (
                    "URLs without passwords, tokens and signatures: this is kept on disk, and a store's library finds "
                    "them in the environment (AWS_…, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN) or its own files"
                )
                yield Problem(key=f"data.{key}", received=shown(masked), accepted=accepted)


def _images(config: Config) -> Iterator[Problem]:
    augmentation, in_chans = config.data.augmentation, config.model.in_chans
    for key in ("mean", "std"):
        values = getattr(config.data, key)
        if values is not None and len(values) != in_chans:
            yield _problem(config, f"data.{key}", f"model.in_chans = {in_chans} values", "model.in_chans")
    for key in ("scale", "ratio"):
        low, high = getattr(augmentation, key)
        if low > high:
            yield _problem(config, f"data.augmentation.{key}", "a lower and an upper bound, in that order")
    prob = "data.augmentation.random_erasing_prob"
    for name in ("random_erasing_mode", "random_erasing_count"):
        default = Augmentation.model_fields[name].default
        if not augmentation.random_erasing_prob and getattr(augmentation, name) != default:
            accepted = f"its default, {shown(default)}: with probability 0 nothing is erased"
            yield _problem(config, f"data.augmentation.{name}", accepted, prob)
    for name, off in (
        ("rotation", "0"),
        ("auto_augment", "null"),
        ("color_jitter", "null"),
        ("random_erasing_prob", "0"),
    ):
        if not augmentation.enabled and getattr(augmentation, name):
            accepted = f"{off} beside data.augmentation.enabled = false"
            yield _problem(config, f"data.augmentation.{name}", accepted, "data.augmentation.enabled")
    if in_chans != 3 and augmentation.auto_augment:
        accepted = "null: the policies work on RGB images"
        yield _problem(config, "data.augmentation.auto_augment", accepted, "model.in_chans")
    if augmentation.color_jitter is not None and "3a" not in (augmentation.auto_augment or "3a"):
        accepted = f"null: timm leaves it out beside auto_augment = {augmentation.auto_augment}"
        yield _problem(config, "data.augmentation.color_jitter", accepted, "data.augmentation.auto_augment")


def _decoder(config: Config) -> Iterator[Problem]:
    if config.data.decoder == "cpu":
        return
    decoder = "data.decoder"
    if config.trainer.accelerator == "cpu":
        accepted = "cpu beside trainer.accelerator = cpu"
        yield _problem(config, decoder, accepted, "trainer.accelerator")
    if config.model.in_chans != 3:
        accepted = f"cpu beside model.in_chans = {config.model.in_chans}: the GPU decodes RGB alone"
        yield _problem(config, decoder, accepted, "model.in_chans")
    for name in ("rotation", "auto_augment", "color_jitter"):
        if getattr(config.data.augmentation, name):
            accepted = f"cpu beside data.augmentation.{name}, which works on the CPU's pixels"
            yield _problem(config, decoder, accepted, f"data.augmentation.{name}")


def _model(config: Config) -> Iterator[Problem]:
    model, scaling = config.model, ("model.compound_phi", "model.width_multiplier", "model.depth_multiplier")
    explicit = model.width_multiplier is not None or model.depth_multiplier is not None
    if model.compound_phi is not None and explicit:
        yield _problem(config, "model.compound_phi", "null beside width_multiplier or depth_multiplier", *scaling)
    if config.width_and_depth is not None:
        if model.name != "efficientnet_b0" and not model.stages:
            yield _problem(config, "model.name", "efficientnet_b0: scaling starts from it", *scaling)
        if model.pretrained and not model.stages:
            accepted = "false: no weights are published for a scaled network"
            yield _problem(config, "model.pretrained", accepted, *scaling)
    if model.stages:
        if model.name != "efficientnet_b0":
            yield _problem(config, "model.name", "efficientnet_b0: model.stages take the place of its", "model.stages")
        if model.pretrained:
            accepted = "false: no weights are published for such stages"
            yield _problem(config, "model.pretrained", accepted, "model.stages")
    for number, stage in enumerate(model.stages):
        key = f"model.stages[{number}]"
        if stage.channels % 8:
            yield Problem(
                key=key, received=f"channels: {stage.channels}", accepted="a multiple of 8: timm rounds to it"
            )
        for name, blocks in (("expansion", ("ir", "er")), ("se_ratio", ("ir", "er", "ds"))):
            given = getattr(stage, name)
            if stage.block not in blocks and given != Stage.model_fields[name].default:
                accepted = f"no {name}: it has an effect with block = {' or '.join(blocks)} only"
                yield Problem(key=f"{key}.{name}", received=shown(given), accepted=accepted)
    if model.pretrained and model.checkpoint_path is not None:
        yield _problem(config, "model.checkpoint_path", "null beside model.pretrained = true", "model.pretrained")
    if model.freeze_backbone_epochs >= config.trainer.max_epochs:
        accepted = f"less than trainer.max_epochs = {config.trainer.max_epochs}"
        yield _problem(config, "model.freeze_backbone_epochs", accepted, "trainer.max_epochs")


def _loss(config: Config) -> Iterator[Problem]:
    loss, augmentation = config.loss, config.data.augmentation
    splits = "data.augmentation.aug_splits"
    for name, off, given in (
        ("bce_target_thresh", "null", loss.bce_target_thresh is not None),
        ("bce_sum", "false", loss.bce_sum),
    ):
        if given and loss.name != "bce":
            yield _problem(config, f"loss.{name}", f"{off}: it has an effect with loss.name = bce only", "loss.name")
    if loss.name != "jsd":
        if augmentation.aug_splits is not None:
            yield _problem(config, splits, "null without loss.name = jsd, which compares views", "loss.name")
        return
    if augmentation.aug_splits is None:
        yield _problem(config, "loss.name", f"jsd together with {splits}, such as 3", splits)
    elif not (augmentation.enabled and (augmentation.auto_augment or augmentation.color_jitter)):
        beside = [f"data.augmentation.{name}" for name in ("enabled", "auto_augment", "color_jitter")]
        yield _problem(config, splits, "null, or auto_augment such as augmix-m3-w3 by which views differ", *beside)
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(loss, name):
            yield _problem(config, f"loss.{name}", "0 beside loss.name = jsd: views are of one class", "loss.name")


def _distillation(config: Config) -> Iterator[Problem]:
    distillation, teacher = config.distillation, "distillation.teacher"
    for name, field in Distillation.model_fields.items():
        if distillation.teacher is None and getattr(distillation, name) != field.default:
            accepted = f"{shown(field.default)}: without distillation.teacher it has no effect"
            yield _problem(config, f"distillation.{name}", accepted, teacher)
    if distillation.teacher is not None and distillation.kind == "hard" and distillation.temperature != 1:
        accepted = "1.0: it has an effect with distillation.kind = soft only"
        yield _problem(config, "distillation.temperature", accepted, "distillation.kind")


def _optimizer(config: Config) -> Iterator[Problem]:
    for name in sorted(config.optimizer.kwargs.keys() & set(OWN_SETTINGS)):
        accepted = f"arguments that are no settings of their own: {name} is optimizer.{name}"
        yield _problem(config, "optimizer.kwargs", accepted)


def _schedule(config: Config) -> Iterator[Problem]:
    scheduler = config.scheduler
    sched, epochs, rate = "scheduler.sched", "scheduler.decay_epochs", "scheduler.decay_rate"
    if scheduler.warmup_epochs >= config.trainer.max_epochs:
        accepted = f"less than trainer.max_epochs = {config.trainer.max_epochs}"
        yield _problem(config, "scheduler.warmup_epochs", accepted, "trainer.max_epochs")
    kind = scheduler.sched
    if kind == "step" and (scheduler.decay_epochs is None or scheduler.decay_rate is None):
        yield _problem(config, sched, "step together with decay_epochs and decay_rate", epochs, rate)
    if kind == "multistep" and (not scheduler.decay_milestones or scheduler.decay_rate is None):
        accepted = "multistep together with decay_milestones and decay_rate"
        yield _problem(config, sched, accepted, "scheduler.decay_milestones", rate)
    if kind == "plateau" and (scheduler.decay_rate is None or scheduler.decay_rate >= 1):
        yield _problem(config, sched, "plateau together with a decay_rate below 1", rate)
    for name, kinds in SCHEDULE_SETTINGS.items():
        default = Scheduler.model_fields[name].default
        if kind not in kinds and getattr(scheduler, name) != default:
            accepted = f"{shown(default)}: it has an effect with sched = {' or '.join(kinds)} only"
            yield _problem(config, f"scheduler.{name}", accepted, sched)
    if list(scheduler.decay_milestones) != sorted(set(scheduler.decay_milestones)):
        yield _problem(config, "scheduler.decay_milestones", "epochs, each later than the one before it")
    for name, value in scheduler.kwargs.items():
        problem = _schedule_argument(kind, name, value)
        if problem is not None:
            yield Problem(key="scheduler.kwargs", received=f"{name}: {shown(value)}", accepted=problem, beside=(sched,))
            break
    if scheduler.monitor is not None and "ema_" in scheduler.monitor and not config.ema.enabled:
        accepted = "a metric of the raw weights, such as val/top1, beside ema.enabled = false"
        yield _problem(config, "scheduler.monitor", accepted, "ema.enabled")
    after = config.trainer.max_epochs - scheduler.warmup_epochs
    if kind in ("wsd", "rsqrt") and (scheduler.decay_epochs or 0) > after > 0:
        accepted = f"at most the {after:g} epochs of trainer.max_epochs that follow the warm-up"
        yield _problem(config, epochs, accepted, sched, "scheduler.warmup_epochs", "trainer.max_epochs")
    if kind == "rsqrt" and not scheduler.warmup_epochs and "stable_timescale" not in scheduler.kwargs:
        accepted = "above 0, or scheduler.kwargs={stable_timescale: …}: rsqrt takes one of them for its time scale"
        yield _problem(config, "scheduler.warmup_epochs", accepted, sched, "scheduler.kwargs")


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


def _strategy(config: Config) -> Iterator[Problem]:
    trainer, stage = config.trainer, config.deepspeed.zero_stage
    if trainer.strategy == "single" and (trainer.num_nodes > 1 or trainer.devices not in (1, "auto")):
        accepted = "ddp or deepspeed for more than one device"
        yield _problem(config, "trainer.strategy", accepted, "trainer.devices", "trainer.num_nodes")
    if trainer.gradient_clip_algorithm != "norm" and trainer.gradient_clip_val is None:
        accepted = "norm, or a gradient_clip_val beside it"
        yield _problem(config, "trainer.gradient_clip_algorithm", accepted, "trainer.gradient_clip_val")
    if trainer.accelerator == "cpu" and trainer.precision == "16-mixed":
        yield _problem(config, "trainer.precision", "32-true or bf16-mixed on the CPU", "trainer.accelerator")
    if trainer.compile is not None and trainer.gradient_checkpointing:
        accepted = "false beside trainer.compile, which decides by itself what is computed again"
        yield _problem(config, "trainer.gradient_checkpointing", accepted, "trainer.compile")
    if trainer.compile not in (None, "default") and trainer.accelerator == "cpu":
        accepted = "null or default beside trainer.accelerator = cpu: the other modes tune CUDA's kernels and launches"
        yield _problem(config, "trainer.compile", accepted, "trainer.accelerator")
    if trainer.matmul_precision is not None and trainer.accelerator == "cpu":
        accepted = "null beside trainer.accelerator = cpu"
        yield _problem(config, "trainer.matmul_precision", accepted, "trainer.accelerator")
    if trainer.profile_steps is not None and trainer.profile_steps[0] > trainer.profile_steps[1]:
        yield _problem(config, "trainer.profile_steps", "a first and a last step, in that order")
    if trainer.ddp_comm_hook is not None and trainer.strategy in ("single", "deepspeed"):
        accepted = f"null with trainer.strategy = {trainer.strategy}: it is for DDP's gradients"
        yield _problem(config, "trainer.ddp_comm_hook", accepted, "trainer.strategy")
    elif trainer.ddp_comm_hook is not None and trainer.devices == 1 and trainer.num_nodes == 1:
        accepted = "null on one device, whose gradients are sent nowhere"
        yield _problem(config, "trainer.ddp_comm_hook", accepted, "trainer.devices", "trainer.num_nodes")
    if trainer.strategy == "deepspeed":
        yield from _deepspeed(config)
    elif stage is not None:
        accepted = f"null with trainer.strategy = {trainer.strategy}"
        yield _problem(config, "deepspeed.zero_stage", accepted, "trainer.strategy")


def _deepspeed(config: Config) -> Iterator[Problem]:
    trainer, stage = config.trainer, config.deepspeed.zero_stage
    strategy = "trainer.strategy"
    if LAYERWISE.search(config.optimizer.opt.lower().removeprefix("lookahead_")):
        accepted = "one that treats each weight alone, such as adamw: ZeRO lays the weights of all layers end to end"
        yield _problem(config, "optimizer.opt", accepted, strategy)
    if stage is None:
        yield _problem(config, "deepspeed.zero_stage", "1, 2 or 3 with trainer.strategy = deepspeed", strategy)
    if config.ema.enabled and stage == 3:
        accepted = "false under ZeRO 3, where no rank holds whole weights"
        yield _problem(config, "ema.enabled", accepted, strategy, "deepspeed.zero_stage")
    if config.ema.enabled and trainer.precision != "32-true":
        accepted = "false under DeepSpeed in 16 bits, which casts the weights averaged"
        yield _problem(config, "ema.enabled", accepted, strategy, "trainer.precision")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm != "norm":
        accepted = "norm under DeepSpeed, which clips its parts of the gradient by itself"
        yield _problem(config, "trainer.gradient_clip_algorithm", accepted, strategy, "trainer.gradient_clip_val")
    if trainer.compile is not None:
        accepted = "null under DeepSpeed, whose hooks gather and part what a compiled network would hold on to"
        yield _problem(config, "trainer.compile", accepted, strategy)
    if config.model.freeze_backbone_epochs:
        accepted = "0 under DeepSpeed, which fixes what trains at the start"
        yield _problem(config, "model.freeze_backbone_epochs", accepted, strategy)


def _checkpoints(config: Config) -> Iterator[Problem]:
    checkpoint, remote = config.checkpoint, "checkpoint.remote_dir"
    if checkpoint.monitor is not None and checkpoint.keep_best is None:
        accepted = "null: it has an effect with checkpoint.keep_best only"
        yield _problem(config, "checkpoint.monitor", accepted, "checkpoint.keep_best")
    elif checkpoint.monitor is not None and "ema_" in checkpoint.monitor and not config.ema.enabled:
        accepted = "a metric of the raw weights, such as val/top1, beside ema.enabled = false"
        yield _problem(config, "checkpoint.monitor", accepted, "ema.enabled")
    if checkpoint.remote_dir is not None:
        protocol, _, rest = checkpoint.remote_dir.partition("://")
        if protocol in ("http", "https", "hf"):
            yield _problem(config, remote, "a place that can be written, such as s3://bucket/folder")
        elif not rest.strip("/") or {"..", "."} & set(rest.split("/")):
            yield _problem(config, remote, "a folder, without . and .. in its path")


def _launch(config: Config) -> Iterator[Problem]:
    launch, slurm = config.launch, config.launch.slurm
    for key, names in (("environment", launch.environment), ("pass_environment", launch.pass_environment)):
        for name in names:
            if SECRET_NAME.search(name):
                accepted = f"variables that are no secrets: what a job gets is written to disk, and {name} may be one"
                yield Problem(key=f"launch.{key}", received=name, accepted=accepted)
    if launch.mounts and launch.image is None:
        yield _problem(config, "launch.mounts", "[] without launch.image", "launch.image")
    if launch.ssh.hosts and launch.ssh.hostfile is not None:
        yield _problem(config, "launch.ssh.hostfile", "null beside launch.ssh.hosts", "launch.ssh.hosts")
    if slurm.min_nodes is not None and not slurm.elastic:
        accepted = "null without launch.slurm.elastic"
        yield _problem(config, "launch.slurm.min_nodes", accepted, "launch.slurm.elastic")
    if (slurm.min_nodes or 0) > config.trainer.num_nodes:
        accepted = f"at most trainer.num_nodes = {config.trainer.num_nodes}"
        yield _problem(config, "launch.slurm.min_nodes", accepted, "trainer.num_nodes")
    for name in slurm.options:
        if not OPTION_NAME.fullmatch(name) or name in OWN_OPTIONS:
            accepted = "long names of sbatch without dashes, beside those that effnet sets: " + ", ".join(OWN_OPTIONS)
            yield Problem(key="launch.slurm.options", received=name, accepted=accepted)


def _kubernetes(config: Config) -> Iterator[Problem]:
    for number, volume in enumerate(config.launch.kubernetes.volumes):
        key = f"launch.kubernetes.volumes[{number}]"
        kinds = [name for name in ("claim", "csi", "nfs_server") if getattr(volume, name) is not None]
        if len(kinds) != 1:
            yield Problem(key=key, received=" and ".join(kinds) or "none", accepted="one of claim, csi, nfs_server")
        if (volume.nfs_path is None) != (volume.nfs_server is None):
            yield Problem(key=key, received=shown(volume.nfs_path), accepted="nfs_server and nfs_path together")
        if volume.csi_attributes and volume.csi is None:
            yield Problem(key=key, received="csi_attributes", accepted="these beside csi only")
        for name in filter(SECRET_NAME.search, volume.csi_attributes):
            accepted = f"attributes that are no secrets: they are written to disk, and {name} may be one"
            yield Problem(key=key, received=name, accepted=accepted)
    for number, toleration in enumerate(config.launch.kubernetes.tolerations):
        key = f"launch.kubernetes.tolerations[{number}]"
        if (toleration.value is None) == (toleration.operator == "Equal"):
            accepted = "a value beside operator = Equal, and only there"
            yield Problem(key=key, received=shown(toleration.value), accepted=accepted)
        if toleration.key is None and toleration.operator != "Exists":
            yield Problem(key=key, received="null", accepted="a key beside operator = Equal")


def _progressive(config: Config) -> Iterator[Problem]:
    yield from stage_problems(config)
    without = set(_all_but_progressive(config))
    for number, in_stage in enumerate(stage_configs(config)[:-1]):
        for problem in _all_but_progressive(in_stage):
            if problem not in without:
                received = f"{problem.key} = {problem.received}"
                yield replace(problem, key=f"progressive.stages[{number}]", received=received)


def _all_but_progressive(config: Config) -> Iterator[Problem]:
    for check in CHECKS:
        if check is not _progressive:
            yield from check(config)


CHECKS: tuple[Check, ...] = (
    _batches,
    _faults,
    _addresses,
    _images,
    _decoder,
    _model,
    _loss,
    _distillation,
    _optimizer,
    _schedule,
    _strategy,
    _checkpoints,
    _launch,
    _kubernetes,
    _progressive,
)
