"""What a teacher costs: its weights, its forward pass, and the time of both; against real tensors."""

import io
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from configs.load import load_config
from configs.problems import ConfigError
from configs.run import RunDirectory
from tests.unit.trainer.settings import settings
from trainer.distillation import Distillation, build_teacher
from trainer.network import build_network
from trainer.planning.plan import make_plan
from trainer.planning.step import FakeTraining
from trainer.planning.tables import show_plan
from trainer.planning.tracker import StepTracker

IMAGES, PIXELS = 8, 96
SMALL = {
    "model__compound_phi": -6,
    "model__drop_path_rate": 0.0,
    "data__image_size": PIXELS,
    "trainer__precision": "32-true",
}
TEACHER = {"distillation__teacher": "resnet18"}


def test_real_tensors_take_what_fake_ones_say(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), file)
    config = settings(**SMALL, **TEACHER, distillation__checkpoint_path=file)
    fake = FakeTraining(config).run(IMAGES, gradients_stay=False)
    network = build_network(config).to(memory_format=torch.channels_last).train()
    distillation = Distillation(config, *build_teacher(config))
    images = torch.randn(IMAGES, 3, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    resident = [*network.parameters(), *network.buffers(), *distillation.parameters(), *distillation.buffers()]

    with StepTracker(resident) as tracker:
        inputs = images + 0
        logits = network(inputs)
        loss = cross_entropy(logits, torch.zeros(IMAGES, dtype=torch.long))
        forward, before = len(tracker.kernels), tracker.live_bytes
        tracker.peak_bytes = before
        loss = distillation(inputs, logits, loss)
        taught, most = len(tracker.kernels), tracker.peak_bytes
        del inputs, logits
        loss.backward()

    assert fake.teacher_bytes == pytest.approx(most - before, rel=0.02)
    assert fake.peak_bytes == pytest.approx(tracker.peak_bytes, rel=0.02)
    assert len(fake.teacher_kernels) == taught - forward
    assert 2 * fake.teacher_macs == sum(flops for flops, _ in tracker.kernels[forward:taught])


def test_a_teacher_has_no_backward_pass() -> None:
    alone = FakeTraining(settings(**SMALL)).run(IMAGES, gradients_stay=True)
    taught = FakeTraining(settings(**SMALL, **TEACHER)).run(IMAGES, gradients_stay=True)

    assert sum(flops for flops, _ in taught.own_kernels) == sum(flops for flops, _ in alone.kernels)
    assert alone.teacher_macs == alone.teacher_bytes == 0
    assert taught.forward_macs == alone.forward_macs
    # ResNet-18 has 1.814 billion at 224 pixels (He et al., CVPR 2016, table 1: 1.8).
    at_224 = FakeTraining(settings(**{**SMALL, **TEACHER, "data__image_size": 224})).run(1, gradients_stay=True)
    assert at_224.teacher_macs == pytest.approx(1.814e9, rel=0.001)


def test_a_plan_has_the_teachers_weights_and_time_and_names_it_where_it_is_most_of_that() -> None:
    files = ["experiment/b0_imagenet.yaml", "hardware/1x8_a100.yaml"]
    config, plain = (
        load_config(files, ["data.image_size=160", *more]).config
        for more in (["distillation.teacher=tf_efficientnet_b7"], [])
    )
    plan, alone = make_plan(config, devices=8), make_plan(plain, devices=8)
    teacher = timm.create_model("tf_efficientnet_b7").state_dict().values()
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=80))

    assert alone.teacher is None
    assert alone.memory.teacher == 0
    assert plan.teacher is not None
    assert plan.teacher.parameters == 66_347_960
    # Beside its own: scale and shift from our normalisation to the teacher's.
    assert 0 <= plan.memory.teacher - sum(tensor.nbytes for tensor in teacher) < 100
    assert plan.memory.total - alone.memory.total >= plan.memory.teacher
    assert plan.checkpoints == alone.checkpoints
    assert plan.traffic == alone.traffic
    assert plan.duration is not None
    assert alone.duration is not None
    slower = plan.duration.training_hours - alone.duration.training_hours
    assert plan.duration.teacher_hours == pytest.approx(slower, rel=0.05)  # the loss has more operations too
    assert plan.duration.advice.startswith("the teacher's forward pass")
    cells = [" ".join(line.replace("│", " ").split()) for line in text.getvalue().splitlines()]
    assert any(cell.startswith(f"teacher 160 {plan.totals.steps:,} ") for cell in cells)


def test_a_run_is_a_teacher_too_and_its_weights_are_not_read(trained: RunDirectory) -> None:
    theirs = trained.load_config()
    config = settings(
        **SMALL, distillation__teacher=trained.path, data__num_classes=theirs.data.num_classes,
        model__in_chans=theirs.model.in_chans,
    )  # fmt: skip
    training = FakeTraining(config)

    assert training.distillation is not None
    counted = sum(parameter.numel() for parameter in training.distillation.teacher.parameters())
    assert counted == sum(parameter.numel() for parameter in build_network(theirs).parameters())


def test_a_teacher_of_other_images_is_refused() -> None:
    training = FakeTraining(settings(**SMALL, distillation__teacher="halonet26t"))

    with pytest.raises(ConfigError, match="one that takes images of 96 x 96 pixels"):
        training.run(IMAGES, gradients_stay=True)
