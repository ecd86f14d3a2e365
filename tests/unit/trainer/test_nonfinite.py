"""Steps whose numbers go wrong, in real trainings: everything random is on, and a step has two micro-batches."""

import json
import math
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import MixedPrecision

import trainer.assembly
from configs.load import load_config
from configs.problems import DataError
from configs.run import RunDirectory, config_hash
from datamodules.imagenet import ImageNetDataModule
from tests.poison import Poisoned
from tests.unit.trainer.runs import ALONE, as_killed_after, average, checkpoint, new_run, rows, train, weights
from trainer import nonfinite, undoing
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.batchnorm import BatchNormStatistics
from trainer.checkpoint_files import CHECKPOINT, CheckpointFile, read_manifest
from trainer.checkpointing import Interrupted
from trainer.checkpoints import CheckpointDirectory
from trainer.ema import WeightAverage
from trainer.nonfinite import NonFiniteSteps
from trainer.rollback import RollBack, Rollbacks
from trainer.signals import StopFlag

Overrides = Callable[..., list[str]]
BAD = 5
"""Global batch with the poisoned sample, from 0; its step is the one after, counted from 1."""


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Names the samples whose images are NaN from now on."""
    monkeypatch.setattr(trainer.assembly, "EfficientNetModule", Poisoned)
    monkeypatch.setattr(Poisoned, "seen", [], raising=False)

    def poison(*samples: int) -> None:
        monkeypatch.setattr(Poisoned, "samples", samples)

    return poison


@pytest.fixture(params=["before", "after"])
def skips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Steps are skipped before they are taken, as on the CPU, or taken back, as on a device that runs behind."""
    monkeypatch.setattr(undoing, "runs_behind", lambda _: request.param == "after")
    return str(request.param)


@pytest.fixture
def overrides(toy_overrides: Overrides) -> Overrides:
    """Twelve steps, each of which is saved; the first epoch has nine."""

    def changed(**changes: object) -> list[str]:
        settings = {"trainer__max_steps": 12, "checkpoint__every_n_steps": 1, "checkpoint__keep_last": 100}
        return toy_overrides(**settings | changes)

    return changed


def data(overrides: list[str]) -> ImageNetDataModule:
    datamodule = build_datamodule(load_config([], overrides).config, "cpu")
    datamodule.setup("validate")
    return datamodule


def batch(overrides: list[str], number: int) -> list[int]:
    """Samples of a global batch."""
    samples: list[int] = data(overrides).order.batch(number)[0].tolist()
    return samples


def noted(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.nonfinite_file.read_text().splitlines()]


def state(run: RunDirectory, step: int) -> dict[str, Any]:
    """All that a step changes but counts of steps and what follows from them."""
    saved = checkpoint(run, step)
    (optimizer,) = saved["optimizer_states"]
    return {"weights": saved["state_dict"], "average": average(run, step), "optimizer": optimizer["state"]}


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        assert isinstance(second, dict)
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


def batches_seen() -> list[list[int]]:
    """Samples of each step that the latest training has begun, from its first on."""
    steps: dict[int, list[int]] = {}
    for step, samples in Poisoned.seen:
        steps.setdefault(step, []).extend(samples)
    return [steps[step] for step in sorted(steps)]


# Skipping


@pytest.mark.usefixtures("skips")
def test_a_skipped_step_changes_neither_weights_nor_statistics_nor_optimizer_nor_average(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides()
    poison(batch(settings, BAD)[11])
    run = train(new_run(settings, tmp_path))

    assert_nothing_changed_in_the_bad_step(run)
    assert batches_seen() == [batch(settings, number) for number in range(12)]


def assert_nothing_changed_in_the_bad_step(run: RunDirectory) -> None:
    changed = [step for step in range(2, 13) if not same(state(run, step - 1), state(run, step))]
    assert changed == [step for step in range(2, 13) if step != BAD + 1]
    assert all(tensor.isfinite().all() for tensor in weights(run, 12).values())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("opt", ["rmsproptf", "lamb", "lookahead_adamw"])
def test_a_gpu_takes_a_bad_step_back_to_the_bit(
    opt: str, precision: str, poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    changes = {"trainer__accelerator": "cuda", "trainer__precision": precision, "optimizer__opt": opt}
    settings = overrides(**changes, optimizer__lr=0.001, ema__use_warmup="true", checkpoint__every_n_steps=1)
    poison(batch(settings, BAD)[11])
    run = train(new_run(settings, tmp_path))

    assert_nothing_changed_in_the_bad_step(run)
    assert [note["step"] for note in noted(run)] == [BAD + 1]


def relabelled(clean: RunDirectory, runs_dir: Path, *, step: int) -> RunDirectory:
    """A run that stands at ``step`` with the state that the clean one had a step earlier: the update never happened."""
    run = as_killed_after(clean, runs_dir, step=step - 1)
    before, after = checkpoint(clean, step - 1), checkpoint(clean, step)
    for parameters, with_rate in zip(
        before["optimizer_states"][0]["param_groups"], after["optimizer_states"][0]["param_groups"], strict=True
    ):
        parameters["lr"] = with_rate["lr"]
    mixed = {**after, **{key: before[key] for key in ("state_dict", "optimizer_states", "callbacks")}}
    directory = CheckpointDirectory(run.checkpoints)
    CheckpointFile().save_checkpoint(mixed, directory.begin(step) / CHECKPOINT)
    manifest = {"world_size": 1, "config_hash": config_hash(clean.load_config()), "validated": True}
    directory.commit(step, manifest=manifest)
    return run


@pytest.mark.usefixtures("skips")
def test_after_a_skipped_step_all_is_as_if_its_update_had_never_happened(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides()
    clean = train(new_run(settings, tmp_path / "clean"))
    reference = train(relabelled(clean, tmp_path / "reference", step=BAD + 1), attempt=1)
    poison(batch(settings, BAD)[3])
    run = train(new_run(settings, tmp_path / "poisoned"))

    for step in (BAD + 1, BAD + 2, 12):
        assert same(state(run, step), state(reference, step)), step
    assert not same(state(run, 12), state(clean, 12))


@pytest.mark.parametrize("optimizer", ["rmsproptf", "adamw", "lookahead_adamw", "lamb", "muon"])
@pytest.mark.usefixtures("skips")
def test_optimizers_with_counters_of_their_own_are_left_alone_too(
    optimizer: str, poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(optimizer__opt=optimizer, optimizer__lr=1e-4, trainer__max_steps=7)
    poison(batch(settings, BAD)[0])
    run = train(new_run(settings, tmp_path))

    assert same(state(run, BAD), state(run, BAD + 1))
    groups = [checkpoint(run, step)["optimizer_states"][0]["param_groups"] for step in (BAD, BAD + 1)]
    for before, after in zip(*groups, strict=True):
        assert {key: value for key, value in before.items() if key != "lr"} == {
            key: value for key, value in after.items() if key != "lr"
        }
    assert not same(state(run, BAD + 1), state(run, BAD + 2))


@pytest.mark.usefixtures("skips")
def test_the_samples_of_the_bad_micro_batch_are_written_down(
    poison: Callable[..., None], overrides: Overrides, shards: Path, tmp_path: Path
) -> None:
    settings = overrides()
    samples = batch(settings, BAD)
    poison(samples[11])  # of 8 to 15: the second micro-batch
    run = train(new_run(settings, tmp_path), attempt=3)

    (note,) = noted(run)
    expected = {"attempt": 3, "step": BAD + 1, "global_batch": BAD, "what": "loss", "action": "skipped"}
    assert {key: note[key] for key in expected} == expected
    (micro_batch,) = note["micro_batches"]
    assert (micro_batch["micro_batch"], micro_batch["loss"]) == (1, "nan")
    assert [sample["sample"] for sample in micro_batch["samples"]] == samples[8:]
    index = data(settings).train_index
    for sample in micro_batch["samples"]:
        with tarfile.open(sample["shard"]) as tar:
            keys = [name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png")]
        first = int(index.starts[[str(path) for path in index.shards].index(sample["shard"])])
        assert sample["key"] == keys[sample["sample"] - first]
        assert sample["epoch"] == 0


@pytest.mark.usefixtures("skips")
def test_metrics_leave_the_bad_micro_batch_out_and_count_the_step(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(trainer__max_steps=8)
    samples = batch(settings, BAD)
    poison(samples[0])
    one = train(new_run(settings, tmp_path / "one"))
    poison(samples[0], samples[15])
    both = train(new_run(settings, tmp_path / "both"))

    for run in (one, both):
        found = [row for row in rows(run) if row["train/loss"]]
        assert [float(row["train/skipped_steps"]) for row in found] == [0] * BAD + [1] * (8 - BAD)
        finite = [math.isfinite(float(row["train/loss"])) for row in found]
        assert finite == [step != BAD + 1 or run is one for step in range(1, 9)]


class BadGradient(Poisoned):
    """The loss is finite and its gradient is not, in one step."""

    at = BAD

    def on_after_backward(self) -> None:
        if self.trainer.global_step == self.at:
            parameter = next(self.network.parameters())
            assert parameter.grad is not None
            parameter.grad[0] = torch.inf


@pytest.mark.usefixtures("skips")
def test_a_gradient_that_is_not_finite_is_enough(
    monkeypatch: pytest.MonkeyPatch, overrides: Overrides, tmp_path: Path
) -> None:
    monkeypatch.setattr(trainer.assembly, "EfficientNetModule", BadGradient)
    settings = overrides(trainer__gradient_clip_val=1.0, trainer__max_steps=8)
    run = train(new_run(settings, tmp_path))

    assert same(state(run, BAD), state(run, BAD + 1))
    (note,) = noted(run)
    assert note["what"] == "gradient"
    named = [sample["sample"] for entry in note["micro_batches"] for sample in entry["samples"]]
    assert named == batch(settings, BAD)
    row = next(row for row in rows(run) if row["step"] == str(BAD + 1))
    assert math.isfinite(float(row["train/loss"]))


class InfiniteLoss(Poisoned):
    """The loss is infinite and its gradient is not, in one step."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._loss.register_forward_hook(self._inflate)

    def _inflate(self, _: object, __: object, loss: torch.Tensor) -> torch.Tensor:
        return loss + torch.inf if self.trainer.global_step == BAD else loss


@pytest.mark.usefixtures("skips")
def test_a_loss_that_is_not_finite_is_enough(
    monkeypatch: pytest.MonkeyPatch, overrides: Overrides, tmp_path: Path
) -> None:
    monkeypatch.setattr(trainer.assembly, "EfficientNetModule", InfiniteLoss)
    run = train(new_run(overrides(trainer__max_steps=8), tmp_path))

    assert same(state(run, BAD), state(run, BAD + 1))
    (note,) = noted(run)
    assert (note["what"], [entry["loss"] for entry in note["micro_batches"]]) == ("loss", ["inf", "inf"])


@pytest.mark.usefixtures("skips")
def test_a_run_killed_after_a_skipped_step_ends_the_same(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides()
    poison(batch(settings, BAD)[0], batch(settings, BAD + 1)[9])
    whole = train(new_run(settings, tmp_path / "whole"))

    for step in (BAD, BAD + 1, BAD + 2):
        resumed = train(as_killed_after(whole, tmp_path / str(step), step=step), attempt=1)
        assert same(state(whole, 12), state(resumed, 12)), step
        assert [row["train/skipped_steps"] for row in rows(whole)] == [
            row["train/skipped_steps"] for row in rows(resumed)
        ]


@pytest.mark.parametrize("optimizer", ["rmsproptf", "adamw", "lamb", "muon", "nadamw"])
def test_a_bad_first_step_leaves_an_optimizer_as_it_was_made(
    optimizer: str, poison: Callable[..., None], overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "runs_behind", lambda _: True)
    settings = overrides(optimizer__opt=optimizer, optimizer__lr=1e-4, trainer__max_steps=2)
    poison(batch(settings, 0)[0])
    run = train(new_run(settings, tmp_path))

    assert not any(checkpoint(run, 1)["optimizer_states"][0]["state"].values())
    assert not same(state(run, 1), state(run, 2))
    assert all(tensor.isfinite().all() for tensor in [*weights(run, 2).values(), *average(run, 2).values()])


@pytest.mark.parametrize("optimizer", ["lamb", "lookahead_adamw"])
def test_what_the_host_hears_of_only_with_the_next_step_is_undone_as_well(
    optimizer: str, poison: Callable[..., None], overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"trainer__log_every_n_steps": 100, "checkpoint__every_n_steps": None}  # no row and no save asks before
    settings = overrides(optimizer__opt=optimizer, optimizer__lr=1e-4, **changes)
    poison(*(batch(settings, number)[0] for number in (0, BAD, BAD + 1)))
    monkeypatch.setattr(undoing, "runs_behind", lambda _: False)
    skipped = train(new_run(settings, tmp_path / "skipped"))
    monkeypatch.setattr(undoing, "runs_behind", lambda _: True)
    undone = train(new_run(settings, tmp_path / "undone"))

    steps = [[note["step"] for note in noted(run)] for run in (skipped, undone)]
    assert steps[0] == steps[1]
    assert {1, BAD + 1, BAD + 2} <= {*steps[0]}
    assert same(state(skipped, 12), state(undone, 12))
    groups = [checkpoint(run, 12)["optimizer_states"][0]["param_groups"] for run in (skipped, undone)]
    assert all(same(*pair) for pair in zip(*groups, strict=True))


def test_steps_that_could_be_undone_are_the_same_bit_for_bit(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = overrides(trainer__max_steps=4)
    plain = train(new_run(settings, tmp_path / "plain"))
    monkeypatch.setattr(undoing, "runs_behind", lambda _: True)
    assert same(state(plain, 4), state(train(new_run(settings, tmp_path / "undo")), 4))


# fp16: a loss scaler on the CPU, used as Lightning does on a GPU


@pytest.mark.parametrize(("poisoned", "most"), [(False, 10), (True, 10), (False, 0)])
def test_an_overflow_that_the_scaler_deals_with_is_no_bad_step_but_a_nan_loss_is(
    poisoned: bool, most: int, overrides: Overrides, tmp_path: Path
) -> None:
    changed = overrides(trainer__max_steps=8, fault__max_skipped_steps=most)
    settings = [value for value in changed if not value.startswith("trainer.accelerator")]
    config = load_config([], [*settings, "trainer.precision=16-mixed", f"runs_dir={tmp_path}", "run_id=fp16"]).config
    run = RunDirectory.of(config)
    run.create()
    module: Any = BadGradient(config, build_module(config).network)
    module.at = 4
    module.samples = (batch(settings, BAD)[0],) if poisoned else ()
    average = WeightAverage(config.ema)
    callbacks = [NonFiniteSteps(config, run, Rollbacks(run.rollbacks_file, ()), attempt=0), BatchNormStatistics()]
    loop: Trainer = build_trainer(config, ALONE, "cpu", callbacks=[*callbacks, average], loggers=[])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loop.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    loop.fit(module, build_datamodule(config, "cpu"))

    assert loop.global_step == 8
    assert module.skipped_steps == int(poisoned)
    assert scaler.get_scale() == 2.0 ** (9 - int(poisoned))  # halved at the overflow, and at the NaN
    assert all(tensor.isfinite().all() for tensor in module.network.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in average.network.state_dict().values())
    if poisoned:
        assert [note["step"] for note in noted(run)] == [BAD + 1]
    else:
        assert not run.nonfinite_file.exists()


# Going back


@pytest.mark.usefixtures("skips")
def test_one_bad_step_too_many_goes_back_before_them_all_and_past_their_data(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    # Saved every other step: 2, 4, 6. Batches 5, 6, 7 are bad: steps 6 and 7 are skipped, 8 goes back to 4.
    settings = overrides(
        fault__max_skipped_steps=2, checkpoint__every_n_steps=2, trainer__max_steps=None, trainer__max_epochs=2
    )
    poison(*(batch(settings, number)[0] for number in (5, 6, 7)))
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack, match=r"^step 8: the loss is nan, rolled back; "):
        train(run)
    assert [note["action"] for note in noted(run)] == ["skipped", "skipped", "rolled back"]
    (record,) = json.loads(run.rollbacks_file.read_text())["rollbacks"]
    assert {key: record[key] for key in ("before_step", "next_batch", "step")} == {
        "before_step": 6,
        "next_batch": 8,
        "step": 8,
    }
    assert (run.checkpoints / "step-000000006").exists()

    poison()
    train(run, attempt=1)
    # 17 batches in all, and steps 4 and on take those from 8 on.
    assert batches_seen() == [batch(settings, number) for number in range(8, 17)]
    assert Poisoned.seen[0][0] == 4
    saved = checkpoint(run, 13)
    assert saved["effnet"]["position"]["batches_passed_over"] == 4
    assert saved["effnet"]["position"]["samples_consumed"] == 17 * 16
    assert read_manifest(run.checkpoints / "step-000000013")["rollbacks"] == 1
    steps = [int(row["step"]) for row in rows(run) if row["train/loss"]]
    assert steps == list(range(1, 14))
    # Batch 8, of step 5, holds the last sample of the first epoch.
    assert [int(row["step"]) for row in rows(run) if row["val/loss"]] == [5, 13]


def test_a_run_killed_after_it_went_back_ends_the_same(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=1)
    poison(batch(settings, BAD)[0], batch(settings, BAD + 1)[0])
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack):
        train(run)
    poison()
    whole = train(run, attempt=1)

    # Killed before it has saved anew, just after, and later.
    for step in (5, 6, 9):
        killed = as_killed_after(whole, tmp_path / str(step), step=step)
        assert same(state(whole, 12), state(train(killed, attempt=2), 12)), step


@pytest.mark.usefixtures("skips")
def test_bad_steps_in_a_row_are_counted_across_a_kill(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=3)
    poison(*(batch(settings, number)[0] for number in (4, 5, 6, 7)))
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack):
        train(run)
    killed = as_killed_after(run, tmp_path / "killed", step=6)
    killed.rollbacks_file.unlink()
    killed.nonfinite_file.unlink()
    with pytest.raises(RollBack):
        train(killed, attempt=1)

    assert [note["step"] for note in noted(killed)] == [7, 8]
    records = [json.loads(place.rollbacks_file.read_text())["rollbacks"][0] for place in (run, killed)]
    assert [record["before_step"] for record in records] == [5, 5]
    assert [record["next_batch"] for record in records] == [8, 8]


@pytest.mark.parametrize("every", [1, 4])
def test_where_no_step_is_skipped_it_goes_back_at_the_first_and_saves_no_bad_weights(
    every: int, poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=0, checkpoint__every_n_steps=every)
    poison(batch(settings, BAD)[0])
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack, match=r"^step 6: the loss is nan, rolled back; "):
        train(run)

    assert Rollbacks.read(run.rollbacks_file).records[0]["next_batch"] == BAD + 1
    saved = sorted(int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*[0-9]"))
    assert saved == list(range(every, BAD + 1, every))
    poison()
    train(run, attempt=1)
    assert batches_seen() == [batch(settings, BAD + 1 + number) for number in range(12 - saved[-1])]
    assert all(tensor.isfinite().all() for tensor in weights(run, 12).values())


def test_where_no_step_is_skipped_the_last_of_an_epoch_is_not_evaluated(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=0)
    samples, epochs = data(settings).order.batch(8)
    poison(int(samples[epochs.argmin()]))
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack, match=r"^step 9: "):
        train(run)

    assert not any(row.get("val/loss") for row in rows(run))
    assert not (run.checkpoints / "step-000000009").exists()


def test_with_no_checkpoint_it_goes_back_to_the_start(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=0, checkpoint__every_n_steps=None)
    poison(batch(settings, 2)[0])
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack):
        train(run)
    poison()
    train(run, attempt=1)

    assert batches_seen() == [batch(settings, number) for number in range(3, 15)]
    assert checkpoint(run, 12)["effnet"]["position"]["batches_passed_over"] == 3


def test_a_run_that_was_told_to_stop_does_not_begin_again_by_itself(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=0, fault__check_every_n_steps=100)
    poison(batch(settings, BAD)[0])
    run, flag = new_run(settings, tmp_path), StopFlag()
    flag.received = signal.SIGTERM
    with pytest.raises(Interrupted, match=r"^SIGTERM, and step 6: the loss is nan, rolled back; "):
        train(run, flag=flag)
    poison()
    train(run, attempt=1)

    assert batches_seen()[0] == batch(settings, BAD + 1)


# Stopping


def test_after_the_last_rollback_it_stops_and_says_why(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=1, fault__max_rollbacks=1)
    poison(*(batch(settings, number)[0] for number in range(3, 7)))
    run = new_run(settings, tmp_path)
    with pytest.raises(RollBack, match=r"^step 5: "):
        train(run)
    with pytest.raises(DataError) as error:
        train(run, attempt=1)

    assert str(error.value).startswith("step 5: the loss is nan, stopped; its samples are in ")
    assert "gone back 1 times (fault.max_rollbacks = 1)" in str(error.value)
    assert [(note["attempt"], note["global_batch"], note["action"]) for note in noted(run)] == [
        (0, 3, "skipped"),
        (0, 4, "rolled back"),
        (1, 5, "skipped"),
        (1, 6, "stopped"),
    ]
    assert len(json.loads(run.rollbacks_file.read_text())["rollbacks"]) == 1


def test_with_no_rollback_allowed_it_stops_at_once(
    poison: Callable[..., None], overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(fault__max_skipped_steps=0, fault__max_rollbacks=0)
    poison(batch(settings, BAD)[0])
    run = new_run(settings, tmp_path)
    with pytest.raises(DataError, match=r"^step 6: the loss is nan, stopped; "):
        train(run)

    assert not run.rollbacks_file.exists()
    assert [note["action"] for note in noted(run)] == ["stopped"]


# Looking


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_value_that_is_not_finite_is_found(value: float, place: int) -> None:
    gradients = [torch.full((3, 5), 0.5), torch.zeros(7), torch.full((1,), -1.0)]
    assert nonfinite._all_finite(gradients)
    gradients[place].view(-1)[-1] = value
    assert not nonfinite._all_finite(gradients)


def test_looking_changes_no_bit_and_takes_no_large_value_for_infinite() -> None:
    limits = torch.finfo(torch.float32)
    gradient = torch.tensor([limits.max, limits.min, limits.tiny / 8, -limits.tiny / 8, -0.0, 0.1]).repeat(1000)
    before = gradient.clone()

    assert nonfinite._all_finite([gradient])
    assert torch.equal(gradient.view(torch.int32), before.view(torch.int32))
