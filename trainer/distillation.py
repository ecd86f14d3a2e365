"""Learning from a teacher: any model of timm, or what a run has trained."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from configs import schema
from configs.files import read_json
from configs.problems import ConfigError, DataError, Problem, shown
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.streaming.transforms import channel_statistics
from trainer.checkpoint_files import MANIFEST
from trainer.network import build_network, read_weights

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations of channels in 0..1."""


class Distillation(nn.Module):
    """Adds a teacher's loss to that of the labels. It has no parameter that trains, and is in no checkpoint."""

    _scale: torch.Tensor
    _shift: torch.Tensor

    def __init__(self, config: Config, teacher: nn.Module, statistics: Statistics) -> None:
        """Keep the teacher as it is.

        Args:
            config: Of the run.
            teacher: Images, normalised its way, to (N, num_classes) logits. One of timm's that takes a single size is
                shown them in that size.
            statistics: By which its images are normalised.
        """
        super().__init__()
        self._settings = config.distillation
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        if config.trainer.channels_last:
            self.teacher.to(memory_format=torch.channels_last)
        (own_mean, own_std), (mean, std) = (
            (torch.tensor(values).view(1, -1, 1, 1) for values in both)
            for both in (channel_statistics(config.data, config.model.in_chans), statistics)
        )
        self._same = bool(torch.equal(own_mean, mean) and torch.equal(own_std, std))
        self._size = _fixed_size(teacher)
        self.register_buffer("_scale", own_std / std)
        self.register_buffer("_shift", (own_mean - mean) / std)

    def forward(self, images: torch.Tensor, logits: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch, averaged over its samples.

        Args:
            images: (N, C, H, W) as the network sees them, after mixing and erasing.
            logits: (N, num_classes) fp32, the network's.
            loss: Of the labels.

        Raises:
            ConfigError: If the teacher takes no images of that size.
        """
        with torch.no_grad():
            shown_to_it = images if self._same else images * self._scale + self._shift
            if self._size is not None and shown_to_it.shape[-2:] != self._size:
                shown_to_it = interpolate(shown_to_it, self._size, mode="bilinear", antialias=True)
            try:
                answer = self.teacher(shown_to_it).float()
            except AssertionError as error:
                reason = str(error).partition("\n")[0]
                accepted = f"one that takes images of {' x '.join(map(str, images.shape[2:]))} pixels {reason}".rstrip()
                raise _refused(self._settings, "teacher", accepted) from None
        if self._settings.kind == "hard":
            taught = cross_entropy(logits, answer.argmax(1))
        else:
            temperature = self._settings.temperature
            ours, theirs = (log_softmax(each / temperature, dim=1) for each in (logits, answer))
            taught = kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
        return (1 - self._settings.alpha) * loss + self._settings.alpha * taught


def build_teacher(config: Config, *, weights: bool = True) -> tuple[nn.Module, Statistics]:
    """The teacher of a configuration, and the statistics by which its images are normalised.

    Args:
        config: Of the run.
        weights: Read or download the teacher's; otherwise it is left as it is built.

    Raises:
        ConfigError: If there is no such teacher, or it is for other classes or channels.
        DataError: If its weights cannot be read, or are those of another network.
    """
    name = config.distillation.teacher
    assert name is not None
    if Path(name).is_dir():
        return _from_run(config, Path(name), weights=weights)
    return _from_timm(config, name, weights=weights)


def _from_run(config: Config, path: Path, *, weights: bool) -> tuple[nn.Module, Statistics]:
    if config.distillation.checkpoint_path is not None:
        raise _refused(
            config.distillation, "checkpoint_path", "null beside the directory of a run, which has its weights"
        )
    run = next((folder for folder in (path, *path.resolve().parents[:2]) if (folder / "config.yaml").is_file()), None)
    saved = read_json(path / MANIFEST).get("config")
    if run is None and saved is None:
        raise _refused(config.distillation, "teacher", "the directory of a run or of one of its checkpoints")
    theirs = RunDirectory(run).load_config() if run is not None else Config.model_validate(saved, strict=False)
    for section, key in (("data", "num_classes"), ("data", "modality"), ("model", "in_chans")):
        here, there = (getattr(getattr(each, section), key) for each in (config, theirs))
        if here != there:
            raise _refused(
                config.distillation, "teacher", f"a teacher with {section}.{key} = {here}; that one has {there}"
            )
    teacher = build_network(theirs, restored=True)
    if weights:
        _load(teacher, path, key="distillation.teacher")
    return teacher, channel_statistics(theirs.data, theirs.model.in_chans)


def _from_timm(config: Config, name: str, *, weights: bool) -> tuple[nn.Module, Statistics]:
    family, dot, _ = name.partition(".")
    known = timm.list_pretrained(f"{family}.*") if dot else timm.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        accepted = f"did you mean {' or '.join(close)}?" if close else "a name of timm's, or the directory of a run"
        raise _refused(config.distillation, "teacher", accepted)
    file, arguments = config.distillation.checkpoint_path, {"num_classes": config.data.num_classes}
    described: Any = timm.get_pretrained_cfg(name)
    if file is None and not timm.is_model_pretrained(name):
        raise _refused(config.distillation, "checkpoint_path", f"a file: nobody published weights of {name}")
    if file is None and described.num_classes != config.data.num_classes:
        accepted = f"a teacher of data.num_classes = {config.data.num_classes}; that one has {described.num_classes}"
        raise _refused(config.distillation, "teacher", accepted)
    if config.model.in_chans != 3:
        raise _refused(
            config.distillation, "teacher", "the directory of a run: timm's models are described for RGB images alone"
        )
    teacher: nn.Module = timm.create_model(name, pretrained=weights and file is None, **arguments)
    if weights and file is not None:
        _load(teacher, Path(file), key="distillation.checkpoint_path")
    return teacher, (tuple(teacher.pretrained_cfg["mean"]), tuple(teacher.pretrained_cfg["std"]))  # type: ignore[index]


def _fixed_size(teacher: nn.Module) -> tuple[int, int] | None:
    """Height and width of the only images that a model of timm takes, as many transformers'; None if it takes any."""
    described: Any = getattr(teacher, "pretrained_cfg", None) or {}
    return tuple(described["input_size"][1:]) if described.get("fixed_input_size") else None


def _load(teacher: nn.Module, path: Path, *, key: str) -> None:
    try:
        teacher.load_state_dict(read_weights(path, key=key))
    except RuntimeError as error:
        raise DataError(f"{key} {path} is of another network: {' '.join(str(error).split())[:300]}") from None


def _refused(settings: schema.Distillation, name: str, accepted: str) -> ConfigError:
    received = shown(getattr(settings, name))
    return ConfigError([Problem(key=f"distillation.{name}", received=received, accepted=accepted)])
