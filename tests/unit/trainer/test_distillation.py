"""A teacher's loss in a real loop; it is neither trained nor saved, and a run with it goes on where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from timm.task.distillation import LogitDistillationTask
from torch import nn
from torch.nn.functional import cross_entropy

from configs.load import load_config
from configs.problems import ConfigError, DataError
from configs.run import RunDirectory
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, checkpoint, new_run, train, weights
from tests.unit.trainer.settings import settings
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.distillation import Distillation, build_teacher
from trainer.losses import build_loss
from trainer.module import EfficientNetModule

Overrides = Callable[..., list[str]]
CLASSES = 4


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a small teacher of another kind, whose images are normalised otherwise."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), file)
    return str(file)


def taught(resnet: str, **changes: object) -> dict[str, Any]:
    given = {"teacher": "test_resnet", "checkpoint_path": resnet, **changes}
    return {f"distillation__{key}": value for key, value in given.items()}


class Spy(Callback):
    """What the network saw and answered, and the loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.targets: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def keep(module: nn.Module, arguments: tuple[torch.Tensor], logits: torch.Tensor) -> None:
            if module.training:
                self.seen.append((arguments[0].clone(), logits.detach().clone()))

        network: Any = pl_module.network
        network.register_forward_hook(keep)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        self.targets.append(batch.targets)


def spied(overrides: list[str]) -> tuple[Spy, EfficientNetModule, Distillation]:
    config = load_config([], overrides).config
    spy, module = Spy(), build_module(config)
    distillation = Distillation(config, *build_teacher(config))
    module.set_distillation(distillation)
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[spy], loggers=[])
    trainer.fit(module, build_datamodule(config, "cpu"))
    return spy, module, distillation


UNMIXED = {"loss__mixup_alpha": 0.0, "loss__cutmix_alpha": 0.0}


def test_the_soft_loss_is_timms_with_the_teachers_own_normalisation(resnet: str, toy_overrides: Overrides) -> None:
    changes = taught(resnet, alpha=0.3, temperature=2.0) | UNMIXED | {"data__mean": "[0.4, 0.4, 0.4]"}
    spy, module, distillation = spied(toy_overrides(trainer__max_steps=2, **changes))

    class Answered(nn.Module):
        """Stands for a student that has answered."""

        num_classes, in_chans = CLASSES, 3
        pretrained_cfg = {"mean": (0.4, 0.4, 0.4), "std": (0.229, 0.224, 0.225)}  # noqa: RUF012 - as timm has it

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return self.logits

    assert not torch.equal(distillation._scale, torch.ones(1, 3, 1, 1))
    student = Answered()
    task = LogitDistillationTask(
        student,
        distillation.teacher,
        criterion=build_loss(module.config),
        task_loss_weight=0.7,
        temperature=2.0,
        device=torch.device("cpu"),
    )
    assert len(spy.seen) == 4
    for (images, logits), targets, loss in zip(spy.seen, spy.targets, spy.losses, strict=True):
        student.logits = logits
        torch.testing.assert_close(loss, task(images, targets)["loss"], rtol=1e-4, atol=1e-5)


def test_the_hard_loss_is_cross_entropy_with_the_teachers_answer(resnet: str, toy_overrides: Overrides) -> None:
    spy, _, distillation = spied(toy_overrides(trainer__max_steps=1, **taught(resnet, alpha=1.0, kind="hard")))

    for (images, logits), loss in zip(spy.seen, spy.losses, strict=True):
        answer = distillation.teacher(images * distillation._scale + distillation._shift)
        torch.testing.assert_close(loss, cross_entropy(logits, answer.argmax(1)), rtol=1e-5, atol=1e-6)


def test_a_teacher_of_one_size_is_shown_images_in_that_size(toy_overrides: Overrides, tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_file(timm.create_model("test_vit", num_classes=CLASSES).state_dict(), file := tmp_path / "model.safetensors")
    changes = {"distillation__teacher": "test_vit", "distillation__checkpoint_path": file, "distillation__alpha": 1.0}
    spy, _, distillation = spied(toy_overrides(trainer__max_steps=1, distillation__kind="hard", **changes))

    seen: list[tuple[int, ...]] = []
    distillation.teacher.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[1:])))
    for (images, logits), loss in zip(spy.seen, spy.losses, strict=True):
        assert images.shape[-2:] == (64, 64)
        taught_alone = distillation(images, logits, torch.zeros(()))
        torch.testing.assert_close(loss, taught_alone, rtol=1e-5, atol=1e-6)
    assert set(seen) == {(3, 160, 160)}


def test_the_teacher_is_neither_trained_nor_the_modules(resnet: str, toy_overrides: Overrides) -> None:
    overrides = toy_overrides(trainer__max_steps=2, **taught(resnet))
    _, module, distillation = spied(overrides)
    fresh, _ = build_teacher(module.config)

    assert not distillation.teacher.training
    assert not any(parameter.requires_grad for parameter in distillation.teacher.parameters())
    assert not changed(fresh.state_dict(), distillation.teacher.state_dict())
    assert all(name.startswith("network.") for name in module.state_dict())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_run_with_a_teacher_resumes_bit_for_bit(
    kind: str, resnet: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(
        trainer__max_steps=4, checkpoint__every_n_steps=1, checkpoint__keep_last=9, **taught(resnet, kind=kind)
    )
    run = train(new_run(overrides, tmp_path / "whole"))
    resumed = train(as_killed_after(run, tmp_path / "again", step=2), attempt=1)

    assert not changed(weights(run, 4), weights(resumed, 4))
    assert not changed(average(run, 4), average(resumed, 4))
    names = set(build_module(run.load_config()).network.state_dict())
    assert set(weights(run, 4)) == set(average(run, 4)) == names
    groups = checkpoint(run, 4)["optimizer_states"][0]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == len(list(build_module(run.load_config()).parameters()))


# Teachers


def test_a_run_teaches_with_its_averaged_weights(trained: RunDirectory, toy_overrides: Overrides) -> None:
    for path in (trained.path, trained.checkpoints / "step-000000017"):
        config = load_config([], toy_overrides(distillation__teacher=path, model__name="efficientnet_b0")).config
        teacher, statistics = build_teacher(config)

        assert not changed(teacher.state_dict(), average(trained, 17))
        assert statistics == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("changes", "key", "accepted"),
    [
        ({"teacher": "resnet5O"}, "distillation.teacher", "did you mean resnet50"),
        ({"teacher": "/none/such"}, "distillation.teacher", "a name of timm's, or the directory of a run"),
        ({"teacher": "resnet50"}, "distillation.teacher", "data.num_classes = 4; that one has 1000"),
        ({"teacher": "efficientnet_b8"}, "distillation.checkpoint_path", "nobody published weights of efficientnet_b8"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(changes: dict[str, str], key: str, accepted: str) -> None:
    config = settings(data__num_classes=4, **{f"distillation__{name}": value for name, value in changes.items()})
    with pytest.raises(ConfigError, match=accepted) as caught:
        build_teacher(config)

    assert caught.value.problems[0].key == key


def test_a_run_of_other_classes_or_a_folder_that_is_none_is_refused(trained: RunDirectory, tmp_path: Path) -> None:
    for path, accepted in (
        (trained.path, "a teacher with data.num_classes = 5; that one has 4"),
        (tmp_path, "the directory of a run or of one of its checkpoints"),
    ):
        with pytest.raises(ConfigError, match=accepted):
            build_teacher(settings(data__num_classes=5, distillation__teacher=path))
    text = settings(data__modality="text", data__num_classes=4, model__in_chans=1, distillation__teacher=trained.path)
    with pytest.raises(ConfigError, match=r"a teacher with data.modality = text; that one has image"):
        build_teacher(text)


def test_weights_of_another_network_are_refused(resnet: str) -> None:
    config = settings(data__num_classes=4, distillation__teacher="resnet18", distillation__checkpoint_path=resnet)
    with pytest.raises(DataError, match=r"distillation.checkpoint_path .* is of another network"):
        build_teacher(config)


def test_a_teacher_that_does_not_take_the_images_is_refused(toy_overrides: Overrides, tmp_path: Path) -> None:
    save_file(timm.create_model("halonet26t", num_classes=CLASSES).state_dict(), file := tmp_path / "model.safetensors")
    changes = {"distillation__teacher": "halonet26t", "distillation__checkpoint_path": file}
    with pytest.raises(
        ConfigError, match=r"distillation.teacher\s+received\s+\"halonet26t\"\s+accepted.* 64 x 64 pixels"
    ):
        spied(toy_overrides(trainer__max_steps=1, **changes))
