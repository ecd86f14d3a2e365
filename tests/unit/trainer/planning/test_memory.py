"""Memory by part, the largest micro-batch, and the size of a checkpoint against a real one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load_config
from configs.run import RunDirectory
from tests.unit.trainer.settings import settings
from trainer.planning.memory import ZERO_BUCKET, Memory, gradients_stay, plan_checkpoints, plan_memory
from trainer.planning.step import FakeTraining

TINY = {"model__compound_phi": -12, "data__image_size": 64, "data__num_classes": 10, "data__micro_batch_size": 16}


def memory(world_size: int = 1, **changes: object) -> tuple[Memory, int]:
    """A plan of a tiny network, and its number of parameters."""
    config = settings(**{**TINY, "data__global_batch_size": 16 * world_size, **changes})
    training = FakeTraining(config)
    size, stay = config.data.micro_batch_size, gradients_stay(config, world_size)
    passes = (training.run(size, gradients_stay=stay), training.run(size // 2, gradients_stay=stay))
    planned = plan_memory(config, training, passes, training.update(), world_size=world_size)
    return planned, sum(parameter.numel() for parameter in training.network.parameters())


def test_one_device_keeps_weights_optimizer_average_and_activations() -> None:
    planned, parameters = memory(optimizer__opt="adamw")

    assert planned.weights == planned.gradients == 4 * parameters
    assert planned.optimizer == pytest.approx(8 * parameters, rel=0.01)
    assert planned.average == 4 * parameters + planned.buffers
    assert (planned.communication, planned.usable, planned.largest_micro_batch, planned.fits) == (0, None, None, None)
    parts = (planned.weights, planned.buffers, planned.gradients, planned.optimizer, planned.average)
    assert planned.undo == sum(parts) - planned.gradients
    assert planned.total == sum(parts) + planned.undo + planned.activations
    assert memory(ema__enabled=False)[0].average == 0


def test_without_accumulation_one_device_has_gradients_only_as_activations_go() -> None:
    alone, parameters = memory(ema__enabled=False, optimizer__opt="sgd")
    accumulating, _ = memory(ema__enabled=False, optimizer__opt="sgd", data__global_batch_size=32)

    assert 0 < accumulating.total - alone.total <= 4.2 * parameters


def test_gradient_checkpointing_keeps_less_and_views_of_a_sample_more() -> None:
    plain, _ = memory()
    views = {
        "loss__name": "jsd",
        "data__augmentation__aug_splits": 3,
        "data__augmentation__auto_augment": "augmix-m3-w3",
    }

    assert memory(trainer__gradient_checkpointing=True)[0].activations < 0.8 * plain.activations
    assert memory(**views)[0].activations == pytest.approx(3 * plain.activations, rel=0.1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_deals_what_its_stage_says_to_the_devices(stage: int) -> None:
    planned, parameters = memory(
        4,
        trainer__strategy="deepspeed",
        trainer__precision="32-true",
        deepspeed__zero_stage=stage,
        ema__enabled=False,
        optimizer__opt="adamw",
    )

    assert planned.optimizer == pytest.approx(12 * parameters / 4, rel=0.01)  # master weights and two moments
    assert planned.gradients == (4 * parameters if stage == 1 else parameters)
    assert planned.weights == (5 * parameters if stage == 3 else 4 * parameters)
    assert planned.communication == 4 * ZERO_BUCKET * (1 if stage == 3 else 2)


def test_an_optimizer_in_the_hosts_memory_takes_none_of_a_device() -> None:
    zero = {"trainer__strategy": "deepspeed", "deepspeed__zero_stage": 2, "ema__enabled": False}
    stays, _ = memory(2, **zero)
    goes, _ = memory(2, **zero, deepspeed__offload_optimizer=True)

    assert stays.optimizer > goes.optimizer == 0
    assert goes.total < stays.total
    on_cpu = {**zero, "trainer__accelerator": "cpu", "trainer__precision": "32-true"}  # whose memory is the host's
    assert memory(2, **on_cpu, deepspeed__offload_optimizer=True) == memory(2, **on_cpu)


def test_deepspeed_in_16_bits_halves_weights_and_keeps_masters_and_moments_in_32() -> None:
    planned, parameters = memory(
        2, trainer__strategy="deepspeed", deepspeed__zero_stage=2, ema__enabled=False, optimizer__opt="adamw"
    )

    assert (planned.weights, planned.gradients) == (2 * parameters, parameters)
    assert planned.optimizer == pytest.approx(12 * parameters / 2, rel=0.02)


def test_the_largest_micro_batch_fits_and_a_larger_one_does_not() -> None:
    device = {"launch__hardware__memory_gb": 2, "trainer__accelerator": "cuda"}
    found, _ = memory(2, **device)
    largest = found.largest_micro_batch
    assert largest is not None

    def fits(size: int) -> bool | None:
        return memory(2, **device, data__micro_batch_size=size, data__global_batch_size=8 * size)[0].fits

    assert found.fits
    assert found.fitting_micro_batch == 16  # all that a device has of a batch of 32
    assert found.totals[16] == found.total
    assert largest > 64
    assert fits(largest)
    assert not fits(largest + 2)


def test_what_has_no_room_even_without_images_fits_no_micro_batch() -> None:
    planned, _ = memory(trainer__accelerator="cpu", launch__hardware__memory_gb=0.0001)

    assert (planned.fits, planned.largest_micro_batch, planned.fitting_micro_batch) == (False, 0, None)


def test_checkpoints_that_are_kept_for_ever_count() -> None:
    config = settings(**TINY, checkpoint__keep_every_n_steps=100)
    training = FakeTraining(config)
    planned = plan_checkpoints(config, training, training.update(), epochs=10, steps=950)

    assert planned.kept == (3 + 1 + 9) * planned.each


def test_a_checkpoint_has_the_size_of_a_real_one(
    trained: RunDirectory, toy_overrides: Callable[..., list[str]]
) -> None:
    config = load_config([], toy_overrides()).config
    training = FakeTraining(config)
    planned = plan_checkpoints(config, training, training.update(), epochs=2)

    newest = trained.checkpoints / str(trained.latest_checkpoint())
    real = sum(file.stat().st_size for file in Path(newest).iterdir() if file.suffix == ".ckpt")
    assert planned.each == pytest.approx(real, rel=0.02)
    assert planned.kept == 2 * planned.each


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__accelerator": "cpu"},
        {"fault__max_skipped_steps": 0},
        {"trainer__precision": "16-mixed"},
        {"trainer__strategy": "deepspeed", "deepspeed__zero_stage": 1, "ema__enabled": False},
    ],
)
def test_where_no_step_is_undone_nothing_is_copied(changes: dict[str, object]) -> None:
    assert memory()[0].undo > 0
    assert memory(**changes)[0].undo == 0
