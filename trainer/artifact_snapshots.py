"""What W&B gets of a checkpoint: hard links to its files, which retention cannot remove, and a model card.

A link takes no room and no time, where W&B's own copy of 800 MB takes 0.3 s and as much room in the home directory
(measured on 2026-11-28). Where a file system has no links the files are copied.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.files import read_json, write_atomically
from configs.run import RunDirectory
from configs.schema import Config
from trainer.checkpoint_files import CHECKPOINT, MANIFEST, WEIGHTS
from trainer.elastic_zero import OPTIMIZER, STATE
from trainer.exporting.model_card import model_card
from trainer.exporting.timm_layout import how_to_load
from trainer.exporting.weights import Weights

CARD = "README.md"
LABEL = ".json"
"""Suffix of the file beside a snapshot's folder that says what it is to be called in W&B."""
FACTS = ("step", "epoch", "metrics", "files", "world_size", "config_hash", "format_version")
"""Of a manifest, in the artifact's metadata."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A checkpoint as W&B is to have it.

    Attributes:
        path: The folder; its name is that of the checkpoint.
        aliases: Names of the version in W&B.
        offline: Whether an attempt's own files name it, from which ``wandb sync`` will send it.
    """

    path: Path
    aliases: tuple[str, ...]
    offline: bool = False

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the checkpoint."""
        return read_json(self.path / MANIFEST)

    @property
    def metadata(self) -> dict[str, Any]:
        """What W&B shows beside the files."""
        manifest = self.manifest
        return {name: manifest[name] for name in FACTS if name in manifest}

    @property
    def files(self) -> dict[str, Path]:
        """By name in the artifact."""
        return {str(file.relative_to(self.path)): file for file in sorted(self.path.rglob("*")) if file.is_file()}

    def label(self) -> None:
        """Write down what is needed to go on with it in another process."""
        write_atomically(_label(self.path), json.dumps({"aliases": self.aliases, "offline": self.offline}) + "\n")

    def remove(self) -> None:
        """Once W&B has it."""
        _label(self.path).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def take(
    folder: Path, checkpoint: Path, *, aliases: Sequence[str], offline: bool, card: str, with_files: bool
) -> Snapshot:
    """Keep a checkpoint as it is now.

    Args:
        folder: Where snapshots are; on the file system of the checkpoint.
        checkpoint: Its directory.
        aliases: Names in W&B.
        offline: As `Snapshot` has it.
        card: Text of the model card.
        with_files: Whether its files too, or the manifest and the card alone.

    Raises:
        OSError: If there is no room, or the checkpoint is gone.
    """
    snapshot = Snapshot(path=folder / checkpoint.name, aliases=tuple(aliases), offline=offline)
    snapshot.remove()  # of the same step before the run went back
    temporary = folder / f"{checkpoint.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    names = read_json(checkpoint / MANIFEST).get("files", {}) if with_files else ()
    for name in (*names, MANIFEST):
        target = temporary / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(checkpoint / name, target)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(checkpoint / name, target)
    (temporary / CARD).write_text(card, encoding="utf-8")
    snapshot.label()
    temporary.rename(snapshot.path)
    return snapshot


def has(folder: Path, checkpoint: Path) -> bool:
    """Whether there is a snapshot of this very checkpoint."""
    taken = read_json(folder / checkpoint.name / MANIFEST)
    return bool(taken) and taken == read_json(checkpoint / MANIFEST)


def left(folder: Path) -> list[Snapshot]:
    """Snapshots of attempts that ended before W&B had them, the oldest first. What was cut off is removed."""
    for path in folder.glob("*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    found = []
    for path in sorted(path for path in folder.glob("step-*") if path.is_dir()):
        label = read_json(_label(path))
        if "aliases" in label:
            found.append(Snapshot(path=path, aliases=tuple(label["aliases"]), offline=bool(label.get("offline"))))
    return found


def card_of(
    run: RunDirectory, config: Config, checkpoint: Path, *, parameters: int, classes: Sequence[str] | None = None
) -> str:
    """The model card of a checkpoint's weights: the averaged ones, where there are some."""
    manifest = read_json(checkpoint / MANIFEST)
    kind = "ema" if config.ema.enabled else "raw"
    weights = Weights({}, kind, (int(manifest["step"]),), manifest.get("metrics", {}))
    files = {CHECKPOINT: "weights and all else that training goes on from; `resume=FOLDER` begins there"}
    if WEIGHTS in manifest["files"]:
        files[WEIGHTS] = "the weights alone, as a whole"
        files[OPTIMIZER] = "the optimizer's state as a whole, for another number of processes"
        files[STATE] = "all of the checkpoint but weights and optimizer"
    files[MANIFEST] = "sizes and checksums of the files, step, metrics, configuration"
    return model_card(
        run,
        config,
        weights,
        how_to_load=_how_to_load(config, kind, whole=WEIGHTS in manifest["files"]),
        classes=classes,
        parameters=parameters,
        files=files,
        measured=(),
        curves=False,
    )


def _how_to_load(config: Config, kind: str, *, whole: bool) -> list[str]:
    """Lines of Python, from timm and torch alone, in the artifact's folder."""
    made = how_to_load(config, Path(CHECKPOINT))
    made = [line for line in made if "load_checkpoint" not in line]
    made = [line.replace(f", checkpoint_path={CHECKPOINT!r}", "") for line in made]
    if whole:
        lines = ["from safetensors.torch import load_file", f"saved = load_file({WEIGHTS!r})", f"prefix = '{kind}.'"]
    else:
        lines = [f"checkpoint = torch.load({CHECKPOINT!r}, map_location='cpu', weights_only=True)"]
        if kind == "ema":
            averages = "next(each['network'] for each in checkpoint['callbacks'].values() if 'network' in each)"
            lines += [f"saved, prefix = {averages}, ''"]
        else:
            lines += ["saved, prefix = checkpoint['state_dict'], 'network.'"]
    chosen = "{name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}"
    return [*made, *lines, f"model.load_state_dict({chosen})"]


def _label(path: Path) -> Path:
    return path.with_name(path.name + LABEL)
