"""The table of features by strategy in docs/features.md, by the configuration's own checks.

``python -m tests.features.table`` writes it anew.
"""

from pathlib import Path
from typing import Any

import yaml

from configs.checks import cross_problems
from configs.problems import ConfigError
from configs.schema import Config
from tests.features.catalogue import FEATURES, GLOBAL_BATCH_SIZE, STRATEGIES, Feature, settings_of
from trainer.assembly import resolve_accelerator

DOCUMENT = Path(__file__).parents[2] / "docs" / "features.md"
BEGIN = "<!-- table of strategies: written by `python -m tests.features.table` -->"
END = "<!-- end of the table of strategies -->"
TRAINED, ON_CUDA = "✓", "CUDA"
SHARED: dict[str, object] = {
    "data.num_classes": 4,
    "data.global_batch_size": GLOBAL_BATCH_SIZE,
    "data.micro_batch_size": 4,
    "data.eval_batch_size": 8,
    "data.num_workers": 0,
    "data.num_lanes": 2,
    "data.shuffle_window_shards": 2,
    "data.image_size": 64,
    "model.compound_phi": -12,
    "optimizer.opt": "sgd",
    "optimizer.lr": 0.005,
    "loss.label_smoothing": 0.1,
    "scheduler.warmup_epochs": 0.5,
    "ema.enabled": "false",
    "trainer.devices": 2,
    "trainer.precision": "32-true",
    "trainer.max_epochs": 2,
}
"""Settings of every cell, but for what its row and its column say."""


def cell(feature: Feature, strategy: str) -> str:
    """``TRAINED``, ``ON_CUDA`` where no CPU does it, or the reasons for which the checks refuse it."""
    settings = settings_of(feature, strategy)
    reasons = refusals(settings | {"trainer.accelerator": "auto"})
    if reasons:
        return "; ".join(reasons)
    return ON_CUDA if refusals(settings | {"trainer.accelerator": "cpu"}) else TRAINED


def refusals(settings: dict[str, object]) -> list[str]:
    """What the checks have against such a run: of the configuration, and for the CPU of the device too."""
    tree: dict[str, Any] = {}
    for key, value in {"data.train_shards": "none.tar", "data.val_shards": "none.tar", **SHARED, **settings}.items():
        *sections, name = key.split(".")
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = yaml.safe_load(value) if isinstance(value, str) else value
    config = Config.model_validate(tree, strict=False)
    problems = cross_problems(config)
    if not problems and config.trainer.accelerator == "cpu":
        try:
            resolve_accelerator(config)
        except ConfigError as error:
            problems = error.problems
    return [f"`{problem.key}` must be {problem.accepted}" for problem in problems]


def render() -> str:
    """Rows of features, columns of strategies, and beneath them the reasons by number."""
    reasons: list[str] = []
    lines = ["| feature | trained with | " + " | ".join(STRATEGIES) + " |", "|---" * (2 + len(STRATEGIES)) + "|"]
    for feature in FEATURES:
        cells = []
        for strategy in STRATEGIES:
            found = cell(feature, strategy)
            if found not in (TRAINED, ON_CUDA):
                if found not in reasons:
                    reasons.append(found)
                found = f"no ({reasons.index(found) + 1})"
            cells.append(found)
        settings = ", ".join(f"`{key}={value}`" for key, value in feature.settings.items())
        lines.append(f"| {feature.name} | {settings} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))])


def written() -> str:
    """The table that the document has."""
    return DOCUMENT.read_text(encoding="utf-8").partition(f"{BEGIN}\n\n")[2].partition(f"\n\n{END}")[0]


def main() -> None:
    """Put the table in its place."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
