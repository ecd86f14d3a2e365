"""Which checkpoints are kept, for any that there may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.settings import settings
from trainer.retention import Kept, Retention

RULES = st.builds(
    Retention,
    last=st.integers(1, 4),
    best=st.integers(0, 3),
    every_n_steps=st.none() | st.integers(1, 12),
    monitor=st.sampled_from(["val/top1", "val/ema_loss"]),
)
VALUES = st.none() | st.floats(0, 1, width=16)
CHECKPOINTS = st.dictionaries(st.integers(1, 60), VALUES, min_size=1, max_size=20).map(
    lambda found: [Kept(step, value) for step, value in found.items()]
)


def steps(checkpoints: list[Kept]) -> list[int]:
    return sorted((kept.step for kept in checkpoints), reverse=True)


@given(RULES, CHECKPOINTS, st.data())
def test_what_every_rule_asks_for_is_kept_and_nothing_else(
    rules: Retention, checkpoints: list[Kept], data: st.DataObject
) -> None:
    good, saved = (data.draw(st.sampled_from(steps(checkpoints))) for _ in range(2))
    removed = rules.removable(checkpoints, good=good, never=(saved,))

    older = [kept for kept in checkpoints if kept.step <= good]
    last = steps(older)[: rules.last]
    sign = 1 if rules.monitor.endswith("loss") else -1
    ranked = sorted((sign * kept.value, -kept.step) for kept in older if kept.value is not None)
    best = [-step for _, step in ranked[: rules.best]]
    for_ever = []
    for multiple in range(rules.every_n_steps or 1000, 61, rules.every_n_steps or 1000):
        inside = [kept.step for kept in older if multiple <= kept.step < multiple + (rules.every_n_steps or 1000)]
        for_ever += [min(inside)] if inside else []
    later = [kept.step for kept in checkpoints if kept.step > good]
    assert set(steps(checkpoints)) - removed == {good, saved, *last, *best, *for_ever, *later}


@given(RULES, CHECKPOINTS)
def test_pruning_twice_removes_nothing_more(rules: Retention, checkpoints: list[Kept]) -> None:
    good = steps(checkpoints)[0]
    removed = rules.removable(checkpoints, good=good)
    left = [kept for kept in checkpoints if kept.step not in removed]

    assert not rules.removable(left, good=good)


@given(RULES, st.lists(VALUES, min_size=1, max_size=25))
def test_pruning_at_each_save_keeps_what_pruning_at_the_end_would(rules: Retention, values: list[float | None]) -> None:
    """A checkpoint that is not needed now is not needed later: nothing is removed that a rule would ask for again."""
    everything = [Kept(3 * number + 2, value) for number, value in enumerate(values)]
    there: list[Kept] = []
    for new in everything:
        there = [*there, new]
        removed = rules.removable(there, good=new.step, never=(new.step,))
        there = [kept for kept in there if kept.step not in removed]

    at_once = rules.removable(everything, good=everything[-1].step)
    assert steps(there) == [step for step in steps(everything) if step not in at_once]


def test_the_metric_follows_from_the_configuration() -> None:
    assert Retention.of(settings()) == Retention(last=3, best=1, every_n_steps=None, monitor="val/ema_top1")
    assert Retention.of(settings(ema__enabled="false")).monitor == "val/top1"
    changed = settings(
        checkpoint__keep_last=7,
        checkpoint__keep_best=2,
        checkpoint__monitor="val/loss",
        checkpoint__keep_every_n_steps=1000,
    )
    assert Retention.of(changed) == Retention(last=7, best=2, every_n_steps=1000, monitor="val/loss")
    assert Retention.of(settings(checkpoint__keep_best=None)).best == 0


@pytest.mark.parametrize(("monitor", "best"), [("val/top1", 20), ("val/loss", 10)])
def test_accuracy_is_better_the_higher_and_loss_the_lower(monitor: str, best: int) -> None:
    checkpoints = [Kept(10, 0.2), Kept(20, 0.6), Kept(30, 0.4), Kept(40, None)]

    assert Retention(last=1, best=1, monitor=monitor).removable(checkpoints, good=40) == {10, 20, 30} - {best}
