"""Which checkpoints are removed, and which never are."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.retention import Kept, Retention

VALUES = st.none() | st.floats(0, 1)
CHECKPOINTS = st.dictionaries(st.integers(1, 60), VALUES, min_size=1, max_size=12).map(
    lambda found: [Kept(step, value) for step, value in found.items()]
)
RULES = st.builds(
    Retention,
    last=st.integers(1, 4),
    best=st.integers(0, 3),
    every_n_steps=st.none() | st.integers(1, 20),
    monitor=st.sampled_from(["val/top1", "val/loss"]),
)


@given(RULES, CHECKPOINTS, st.data())
def test_the_last_good_one_the_newest_and_the_best_are_never_removed(
    rules: Retention, checkpoints: list[Kept], data: st.DataObject
) -> None:
    steps = sorted(kept.step for kept in checkpoints)
    good, saved = data.draw(st.sampled_from(steps)), data.draw(st.sampled_from(steps))

    removed = rules.removable(checkpoints, good=good, never=(saved,))

    old = [kept for kept in checkpoints if kept.step <= good]
    assert not removed & {good, saved, *sorted(kept.step for kept in old)[-rules.last :]}
    assert all(step <= good for step in removed)  # damaged ones that are newer stay for people to look at
    values = sorted((kept.value for kept in old if kept.value is not None), reverse=rules.monitor == "val/top1")
    if rules.best and values:
        left = [kept.value for kept in old if kept.step not in removed and kept.value is not None]
        assert all(value in left for value in values[: rules.best])


@given(CHECKPOINTS)
def test_what_no_rule_keeps_is_removed(checkpoints: list[Kept]) -> None:
    newest = max(kept.step for kept in checkpoints)

    removed = Retention(last=1).removable(checkpoints, good=newest)

    assert removed == {kept.step for kept in checkpoints} - {newest}


def test_every_n_steps_keeps_the_first_at_or_after_each_multiple() -> None:
    checkpoints = [Kept(step) for step in range(3, 40, 3)]

    removed = Retention(last=1, every_n_steps=10).removable(checkpoints, good=39)

    assert {kept.step for kept in checkpoints} - removed == {12, 21, 30, 39}
