"""Settings that are valid alone and not together: one case for each check."""

import pytest

from configs.checks import cross_problems
from tests.unit.configs.loading import config_of, problems_of

DEEPSPEED = "trainer.strategy=deepspeed"
ZERO = (DEEPSPEED, "deepspeed.zero_stage=2", "ema.enabled=false")
JSD = ("loss.name=jsd", "data.augmentation.aug_splits=3", "data.augmentation.auto_augment=augmix-m3-w3")
TEXT = ("data.modality=text", "model.in_chans=1")
CASES = [
    (("data.micro_batch_size=60",), "data.global_batch_size", "a multiple of data.micro_batch_size = 60"),
    (
        ("trainer.devices=3", "trainer.num_nodes=2"),
        "data.global_batch_size",
        "a multiple of micro_batch_size x devices x num_nodes = 64 x 3 x 2 = 384",
    ),
    (("data.num_lanes=7",), "data.num_lanes", "a divisor of data.global_batch_size = 256"),
    (
        ("data.micro_batch_size=1", "loss.mixup_alpha=0.2"),
        "data.micro_batch_size",
        "an even number: Mixup and CutMix mix pairs",
    ),
    (
        ("data.micro_batch_size=1", "loss.cutmix_alpha=1"),
        "data.micro_batch_size",
        "an even number: Mixup and CutMix mix pairs",
    ),
    (
        ("fault.timeout_s=300", "fault.hang_timeout_s=150"),
        "fault.hang_timeout_s",
        "null, or more than half of fault.timeout_s = 300: so long may a save be waited for",
    ),
    (("data.mean=[0.5]",), "data.mean", "model.in_chans = 3 values"),
    (("data.std=[0.5, 0.5, 0.5]", "model.in_chans=1"), "data.std", "model.in_chans = 1 values"),
    (("data.augmentation.scale=[1, 0.5]",), "data.augmentation.scale", "a lower and an upper bound, in that order"),
    (("data.augmentation.ratio=[2, 1]",), "data.augmentation.ratio", "a lower and an upper bound, in that order"),
    (
        ("model.in_chans=1", "data.augmentation.auto_augment=rand-m9"),
        "data.augmentation.auto_augment",
        "null: the policies work on RGB images",
    ),
    (
        ("data.augmentation.color_jitter=0.4", "data.augmentation.auto_augment=rand-m9"),
        "data.augmentation.color_jitter",
        "null: timm leaves it out beside auto_augment = rand-m9",
    ),
    (
        ("data.augmentation.random_erasing_mode=const",),
        "data.augmentation.random_erasing_mode",
        'its default, "pixel": with probability 0 nothing is erased',
    ),
    (
        ("data.augmentation.random_erasing_count=3",),
        "data.augmentation.random_erasing_count",
        "its default, 1: with probability 0 nothing is erased",
    ),
    *(
        (
            ("data.augmentation.enabled=false", f"data.augmentation.{setting}"),
            f"data.augmentation.{setting.partition('=')[0]}",
            f"{off} beside data.augmentation.enabled = false",
        )
        for setting, off in (
            ("rotation=5", "0"),
            ("auto_augment=trivial", "null"),
            ("color_jitter=0.4", "null"),
            ("random_erasing_prob=0.2", "0"),
        )
    ),
    *(
        (("data.decoder=nvjpeg", setting), "data.decoder", f"cpu beside {reason}")
        for setting, reason in (
            ("trainer.accelerator=cpu", "trainer.accelerator = cpu"),
            ("model.in_chans=1", "model.in_chans = 1: the GPU decodes RGB alone"),
            *(
                (f"data.augmentation.{name}={value}", f"data.augmentation.{name}, which works on the CPU's pixels")
                for name, value in (("rotation", 5), ("auto_augment", "trivial"), ("color_jitter", 0.4))
            ),
        )
    ),
    (
        (*TEXT, "data.decoder=nvjpeg"),
        "data.decoder",
        "cpu beside data.modality = text: the GPU decodes JPEGs alone",
    ),
    (("data.modality=text",), "model.in_chans", "1 beside data.modality = text, whose pictures are grey"),
    *(
        ((*TEXT, f"{key}={value}"), key, f"{accepted}, beside data.modality = text: it is for images")
        for key, value, accepted in (
            ("data.augmentation.scale", [0.5, 1], "its default, [0.08, 1.0]"),
            ("data.augmentation.ratio", [1, 1], "its default, [0.75, 1.3333333333333333]"),
            ("data.augmentation.hflip", 0.4, "its default, 0.5"),
            ("data.augmentation.vflip", 0.5, "its default, 0.0"),
            ("data.augmentation.rotation", 5, "its default, 0.0"),
            ("data.augmentation.color_jitter", 0.4, "its default, null"),
            ("data.augmentation.auto_augment", "trivial", "its default, null"),
            ("data.interpolation", "bilinear", 'its default, "bicubic"'),
            ("data.crop_pct", 1, "its default, 0.875"),
        )
    ),
    (
        (*TEXT, "progressive.stages=[{until_epoch: 2, image_size: 128}]"),
        "progressive.stages[0].image_size",
        "null beside data.modality = text: it is for images",
    ),
    (
        (*TEXT, "progressive.stages=[{until_epoch: 2, auto_augment: trivial}]"),
        "progressive.stages[0]",
        "its default, null, beside data.modality = text: it is for images",
    ),
    (("data.text.rows=5",), "data.text.rows", "its default, 14, or data.modality = text"),
    (("data.text.font=a.ttf",), "data.text.font", "its default, null, or data.modality = text"),
    (
        (*TEXT, "data.image_size=64", "data.text.rows=22"),
        "data.text.rows",
        "at most 21: 3 of data.image_size = 64 pixels for each",
    ),
    (
        (*TEXT, "data.eval_image_size=32", "data.text.columns=11", "data.text.rows=8"),
        "data.text.columns",
        "at most 10: 3 of data.eval_image_size = 32 pixels for each",
    ),
    (
        (*TEXT, "data.text.random_scale=[2, 1]"),
        "data.text.random_scale",
        "a lower and an upper bound, in that order",
    ),
    *(
        (
            (*TEXT, "data.augmentation.enabled=false", f"data.text.{name}={value}"),
            f"data.text.{name}",
            f"its default, {default}, beside data.augmentation.enabled = false",
        )
        for name, value, default in (("random_shift", 0.5, "0.0"), ("random_scale", [1, 2], "[1.0, 1.0]"))
    ),
    (
        ("model.compound_phi=1", "model.width_multiplier=2"),
        "model.compound_phi",
        "null beside width_multiplier or depth_multiplier",
    ),
    (
        ("model.compound_phi=1", "model.depth_multiplier=2"),
        "model.compound_phi",
        "null beside width_multiplier or depth_multiplier",
    ),
    (
        ("model.compound_phi=1", "model.name=efficientnet_b1"),
        "model.name",
        "efficientnet_b0: scaling starts from it",
    ),
    (
        ("model.width_multiplier=2", "model.pretrained=true"),
        "model.pretrained",
        "false: no weights are published for a scaled network",
    ),
    (
        ("model.pretrained=true", "model.checkpoint_path=w.safetensors"),
        "model.checkpoint_path",
        "null beside model.pretrained = true",
    ),
    (
        ("model.freeze_backbone_epochs=350",),
        "model.freeze_backbone_epochs",
        "less than trainer.max_epochs = 350",
    ),
    *(
        (
            (f"optimizer.kwargs.{name}=1",),
            "optimizer.kwargs",
            f"arguments that are no settings of their own: {name} is optimizer.{name}",
        )
        for name in ("lr", "momentum", "weight_decay")
    ),
    (("loss.bce_sum=true",), "loss.bce_sum", "false: it has an effect with loss.name = bce only"),
    (
        ("loss.bce_target_thresh=0.2",),
        "loss.bce_target_thresh",
        "null: it has an effect with loss.name = bce only",
    ),
    *(
        (
            (f"distillation.{name}={value}",),
            f"distillation.{name}",
            f"{default}: without distillation.teacher it has no effect",
        )
        for name, value, default in (
            ("checkpoint_path", "w.pth", "null"),
            ("alpha", "0.7", "0.5"),
            ("temperature", "2.0", "1.0"),
            ("kind", "hard", '"soft"'),
        )
    ),
    (
        ("distillation.teacher=resnet50", "distillation.kind=hard", "distillation.temperature=2"),
        "distillation.temperature",
        "1.0: it has an effect with distillation.kind = soft only",
    ),
    (
        ("trainer.compile=default", "trainer.gradient_checkpointing=true"),
        "trainer.gradient_checkpointing",
        "false beside trainer.compile, which decides by itself what is computed again",
    ),
    (
        (
            "trainer.compile=reduce-overhead",
            "trainer.devices=2",
            "data.global_batch_size=64",
            "data.micro_batch_size=16",
        ),
        "trainer.compile",
        "null, default or max-autotune-no-cudagraphs where a device takes several micro-batches a step",
    ),
    (
        ("trainer.compile=reduce-overhead", "trainer.accelerator=cpu"),
        "trainer.compile",
        "null or default beside trainer.accelerator = cpu: the other modes tune CUDA's kernels and launches",
    ),
    (
        ("trainer.matmul_precision=high", "trainer.accelerator=cpu"),
        "trainer.matmul_precision",
        "null beside trainer.accelerator = cpu",
    ),
    (
        (*ZERO, "trainer.compile=default"),
        "trainer.compile",
        "null under DeepSpeed, whose hooks gather and part what a compiled network would hold on to",
    ),
    (
        ("data.augmentation.aug_repeats=3",),
        "data.augmentation.aug_repeats",
        "null, or a divisor of the 32 samples that each of data.num_lanes = 8 has in a batch",
    ),
    (
        ("data.augmentation.aug_repeats=2", "data.augmentation.enabled=false"),
        "data.augmentation.aug_repeats",
        "null beside data.augmentation.enabled = false: the repeats would be the same image",
    ),
    *(
        (
            ("data.augmentation.aug_repeats=32", f"loss.{name}=0.2"),
            "data.augmentation.aug_repeats",
            "one that leaves each lane an even number of different samples, or 64 and more, not 256 / 8 / 32 = 1: "
            "Mixup and CutMix would mix some with themselves",
        )
        for name in ("mixup_alpha", "cutmix_alpha")
    ),
    *(
        (
            ("trainer.sync_batchnorm=true", alone),
            "trainer.sync_batchnorm",
            "false on one device, which has no others to ask",
        )
        for alone in ("trainer.strategy=single", "trainer.devices=1")
    ),
    (
        ("trainer.sync_batchnorm=true", "trainer.compile=default"),
        "trainer.sync_batchnorm",
        "false beside trainer.compile: the compiled network would stop at each layer to ask other devices",
    ),
    (
        (*ZERO, "trainer.sync_batchnorm=true"),
        "trainer.sync_batchnorm",
        "false under DeepSpeed in 16 bits, which casts the layers' weights and not their statistics",
    ),
    (("loss.name=jsd",), "loss.name", "jsd together with data.augmentation.aug_splits, such as 3"),
    (
        ("data.augmentation.aug_splits=3",),
        "data.augmentation.aug_splits",
        "null without loss.name = jsd, which compares views",
    ),
    (
        ("loss.name=jsd", "data.augmentation.aug_splits=3"),
        "data.augmentation.aug_splits",
        "null, or auto_augment such as augmix-m3-w3 by which views differ",
    ),
    *(
        (
            (*JSD, f"loss.{name}=0.2"),
            f"loss.{name}",
            "0 beside loss.name = jsd: views are of one class",
        )
        for name in ("mixup_alpha", "cutmix_alpha")
    ),
    (("scheduler.warmup_epochs=350",), "scheduler.warmup_epochs", "less than trainer.max_epochs = 350"),
    (
        ("scheduler.sched=step", "scheduler.decay_rate=0.9"),
        "scheduler.sched",
        "step together with decay_epochs and decay_rate",
    ),
    (
        ("scheduler.sched=step", "scheduler.decay_epochs=2.4"),
        "scheduler.sched",
        "step together with decay_epochs and decay_rate",
    ),
    (
        ("scheduler.decay_epochs=2",),
        "scheduler.decay_epochs",
        "null: it has an effect with sched = step or wsd or rsqrt only",
    ),
    (
        ("scheduler.decay_rate=0.9",),
        "scheduler.decay_rate",
        "null: it has an effect with sched = step or multistep or poly or plateau only",
    ),
    *(
        (
            (f"scheduler.{setting}",),
            f"scheduler.{setting.partition('=')[0]}",
            f"{off}: it has an effect with {only}",
        )
        for setting, off, only in (
            ("decay_milestones=[1, 2]", "[]", "sched = multistep only"),
            ("monitor=val/loss", "null", "sched = plateau only"),
            ("patience_validations=3", "10", "sched = plateau only"),
        )
    ),
    *(
        (
            ("scheduler.sched=multistep", given),
            "scheduler.sched",
            "multistep together with decay_milestones and decay_rate",
        )
        for given in ("scheduler.decay_rate=0.1", "scheduler.decay_milestones=[30]")
    ),
    *(
        (("scheduler.sched=plateau", *given), "scheduler.sched", "plateau together with a decay_rate below 1")
        for given in ((), ("scheduler.decay_rate=1",))
    ),
    (
        ("scheduler.sched=multistep", "scheduler.decay_rate=0.1", "scheduler.decay_milestones=[30, 20]"),
        "scheduler.decay_milestones",
        "epochs, each later than the one before it",
    ),
    *(
        ((f"scheduler.sched={sched}", f"scheduler.kwargs={argument}"), "scheduler.kwargs", accepted)
        for sched, argument, accepted in (
            ("cosine", "{decay_fn: exp}", "arguments of cosine: cycle_mul, cycle_decay, cycle_limit, k_decay"),
            ("constant", "{k_decay: 2}", "arguments of constant: it has none"),
            ("wsd", "{decay_fn: sine}", "decay_fn: linear, 1-sqrt, cosine, power, exp"),
            ("cosine", "{cycle_limit: 1.5}", "cycle_limit: a whole number above 0"),
            ("cosine", "{k_decay: much}", "k_decay: a number above 0"),
        )
    ),
    (
        ("scheduler.sched=plateau", "scheduler.decay_rate=0.1", "scheduler.monitor=val/ema_loss", "ema.enabled=false"),
        "scheduler.monitor",
        "a metric of the raw weights, such as val/top1, beside ema.enabled = false",
    ),
    (
        ("scheduler.sched=wsd", "scheduler.decay_epochs=346"),
        "scheduler.decay_epochs",
        "at most the 345 epochs of trainer.max_epochs that follow the warm-up",
    ),
    (
        ("scheduler.sched=rsqrt", "scheduler.warmup_epochs=0"),
        "scheduler.warmup_epochs",
        "above 0, or scheduler.kwargs={stable_timescale: …}: rsqrt takes one of them for its time scale",
    ),
    *(
        (
            (*ZERO, f"optimizer.opt={opt}"),
            "optimizer.opt",
            "one that treats each weight alone, such as adamw: ZeRO lays the weights of all layers end to end",
        )
        for opt in ("lamb", "muon", "lars", "cadamw", "lookahead_lamb")
    ),
    (("trainer.profile_steps=[3, 2]",), "trainer.profile_steps", "a first and a last step, in that order"),
    *(
        (
            (f"trainer.strategy={strategy}", "trainer.ddp_comm_hook=bf16", *more),
            "trainer.ddp_comm_hook",
            f"null with trainer.strategy = {strategy}: it is for DDP's gradients",
        )
        for strategy, more in (("single", ()), ("deepspeed", ZERO))
    ),
    (
        ("trainer.devices=1", "trainer.ddp_comm_hook=fp16"),
        "trainer.ddp_comm_hook",
        "null on one device, whose gradients are sent nowhere",
    ),
    (("trainer.strategy=single", "trainer.devices=2"), "trainer.strategy", "ddp or deepspeed for more than one device"),
    (
        ("trainer.strategy=single", "trainer.num_nodes=2"),
        "trainer.strategy",
        "ddp or deepspeed for more than one device",
    ),
    (
        ("trainer.accelerator=cpu", "trainer.precision=16-mixed"),
        "trainer.precision",
        "32-true or bf16-mixed on the CPU",
    ),
    *(
        (
            (f"trainer.strategy={strategy}", "deepspeed.zero_stage=1"),
            "deepspeed.zero_stage",
            f"null with trainer.strategy = {strategy}",
        )
        for strategy in ("auto", "single", "ddp")
    ),
    (
        ("trainer.strategy=ddp", "deepspeed.offload_optimizer=true"),
        "deepspeed.offload_optimizer",
        "false with trainer.strategy = ddp",
    ),
    ((DEEPSPEED, "ema.enabled=false"), "deepspeed.zero_stage", "1, 2 or 3 with trainer.strategy = deepspeed"),
    (
        (DEEPSPEED, "deepspeed.zero_stage=3", "trainer.precision=32-true"),
        "ema.enabled",
        "false under ZeRO 3, where no rank holds whole weights",
    ),
    (
        (DEEPSPEED, "deepspeed.zero_stage=2"),
        "ema.enabled",
        "false under DeepSpeed in 16 bits, which casts the weights averaged",
    ),
    (
        (*ZERO, "trainer.gradient_clip_val=1", "trainer.gradient_clip_algorithm=value"),
        "trainer.gradient_clip_algorithm",
        "norm under DeepSpeed, which clips its parts of the gradient by itself",
    ),
    (
        (*ZERO, "trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=agc"),
        "trainer.gradient_clip_algorithm",
        "norm under DeepSpeed, which clips its parts of the gradient by itself",
    ),
    *(
        (
            (f"trainer.gradient_clip_algorithm={algorithm}",),
            "trainer.gradient_clip_algorithm",
            "norm, or a gradient_clip_val beside it",
        )
        for algorithm in ("value", "agc")
    ),
    (
        (*ZERO, "model.freeze_backbone_epochs=1"),
        "model.freeze_backbone_epochs",
        "0 under DeepSpeed, which fixes what trains at the start",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "accepted"), CASES)
def test_a_combination_that_cannot_work_is_refused(overrides: tuple[str, ...], key: str, accepted: str) -> None:
    problems = problems_of(*overrides)

    assert list(problems) == [key]
    assert problems[key].accepted == accepted
    assert problems[key].origin == ("command line" if any(key in override for override in overrides) else None)


@pytest.mark.parametrize(
    ("shards", "shown"),
    [
        ("https://me:hidden@host/{0..9}.tar", "https://…@host/{0..9}.tar"),
        ("https://hidden@host/0.tar", "https://…@host/0.tar"),
        ("https://host/0.tar?X-Amz-Signature=hidden&a=b", "https://host/0.tar"),
        ("here/0.tar::https://host/0.tar?a=b&token=hidden", "here/0.tar::https://host/0.tar"),
        ("https://host/0.tar?sig=hidden", "https://host/0.tar"),
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(shards: str, shown: str) -> None:
    (problem,) = problems_of(f"data.val_shards=['{shards}', 'other.tar']").values()

    assert (problem.key, problem.received) == ("data.val_shards", f'"{shown}"')
    assert "hidden" not in str(problem)


def test_urls_and_patterns_without_secrets_are_accepted() -> None:
    assert not cross_problems(config_of("data.train_shards='https://host/a@b/{00..10}.tar::s3://keys/token-?.tar'"))
    assert not cross_problems(config_of("data.train_shards='https://host/0.tar?version=3'"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.devices=2", "trainer.num_nodes=2"),
        ("trainer.devices=auto", "trainer.num_nodes=3"),
        ("data.micro_batch_size=1",),
        JSD,
        ("trainer.compile=default", "trainer.accelerator=cpu", "trainer.deterministic=true"),
        ("trainer.compile=max-autotune", "trainer.matmul_precision=medium"),
        (*JSD, "distillation.teacher=resnet50", "distillation.temperature=2"),
        ("scheduler.sched=plateau", "scheduler.decay_rate=0.1", "scheduler.monitor=val/loss"),
        ("scheduler.sched=multistep", "scheduler.decay_rate=0.1", "scheduler.decay_milestones=[30, 60]"),
        (
            "scheduler.sched=rsqrt",
            "scheduler.kwargs={decay_fn: cosine, stable_timescale: 3}",
            "scheduler.warmup_epochs=0",
        ),
        ("scheduler.kwargs={cycle_limit: 2, cycle_mul: 1.5, k_decay: 0.5}",),
        *((*ZERO, f"optimizer.opt={opt}") for opt in ("adamw", "rmsproptf", "lion", "sgd")),
        ("trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=agc"),
        ("loss.name=bce", "loss.bce_target_thresh=0.2", "loss.bce_sum=true", "loss.mixup_alpha=0.2"),
        ("data.mean=[0.5]", "data.std=[0.5]", "model.in_chans=1"),
        ("data.augmentation.scale=[1, 1]",),
        (*TEXT, "data.augmentation.hflip=0", "data.mean=[0.1]", "data.std=[0.2]"),
        (*TEXT, "data.augmentation.aug_repeats=2", "loss.mixup_alpha=0.2"),
        (*TEXT, "data.text.random_shift=1", "data.text.random_scale=[0.5, 2]"),
        (*TEXT, "data.augmentation.random_erasing_prob=0.2", "data.text.rows=20"),
        ("data.augmentation.color_jitter=0.4",),
        ("data.augmentation.color_jitter=0.3", "data.augmentation.auto_augment=3a"),
        ("data.augmentation.auto_augment=rand-m9-mstd0.5-inc1",),
        ("data.decoder=nvjpeg", "data.augmentation.random_erasing_prob=0.2", "data.interpolation=random"),
        ("data.decoder=nvjpeg", "data.augmentation.enabled=false", "trainer.accelerator=cuda"),
        ("model.compound_phi=-1.5",),
        ("model.width_multiplier=0.5", "model.depth_multiplier=1.2"),
        ("model.pretrained=true", "model.name=tf_efficientnetv2_s", "model.freeze_backbone_epochs=349"),
        ("scheduler.sched=step", "scheduler.decay_epochs=2.4", "scheduler.decay_rate=0.97"),
        ("scheduler.sched=poly", "scheduler.decay_rate=0.9"),
        ("scheduler.warmup_epochs=0",),
        ("trainer.strategy=single", "trainer.devices=1"),
        ("trainer.strategy=ddp", "trainer.devices=2", "trainer.ddp_comm_hook=fp16"),
        ("trainer.ddp_comm_hook=bf16", "trainer.profile_steps=[3, 3]"),
        ("trainer.accelerator=cpu", "trainer.precision=bf16-mixed"),
        (DEEPSPEED, "deepspeed.zero_stage=1", "trainer.precision=32-true"),
        (*ZERO, "trainer.gradient_clip_val=1"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_algorithm=value"),
    ],
)
def test_a_combination_that_works_is_accepted(overrides: tuple[str, ...]) -> None:
    assert cross_problems(config_of(*overrides)) == []


def test_views_of_images_are_refused_beside_text() -> None:
    problems = problems_of(*TEXT, *JSD)
    accepted = "its default, null, beside data.modality = text: it is for images"
    assert {key: problem.accepted for key, problem in problems.items()} == {
        "data.augmentation.auto_augment": accepted,
        "data.augmentation.aug_splits": accepted,
    }


def test_width_and_depth_follow_the_paper() -> None:
    assert config_of().width_and_depth is None
    assert config_of("model.compound_phi=2").width_and_depth == pytest.approx((1.21, 1.44))
    assert config_of("model.width_multiplier=0.5").width_and_depth == (0.5, 1.0)
    assert config_of("model.depth_multiplier=1.2").width_and_depth == (1.0, 1.2)
