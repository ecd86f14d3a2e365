"""``effnet validate``: from what a user names to the ranks on this machine that evaluate it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load import load_config
from configs.problems import ConfigError, Problem, shown
from configs.run import RunDirectory
from configs.schema import Config
from launch.devices import count_gpus
from launch.fit import in_processes, missing_extra

TIMMS = re.compile(r"(hf-hub|local-dir):.+|(tf_|test_|gc_)?efficientnet\w*(\.\w+)?")
"""What is no run: a name of timm's. Its other networks go by ``timm:NAME``."""
ANY_OF_TIMM = "timm:"
SECTIONS = ("data.", "trainer.")
SIZE_ACCEPTED = "sides in pixels, each once, such as 224,256"
CROP_ACCEPTED = "shares of an image from 0.01 to 1, each once, such as 0.875,1"


@dataclass(frozen=True, kw_only=True)
class Options:
    """As the command line has them."""

    checkpoint: Path | None = None
    model: str | None = None
    shards: tuple[str, ...] = ()
    image_size: str | None = None
    crop_pct: str | None = None
    real_labels: str | None = None
    devices: int | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated: a run, at one of its checkpoints; else a model of timm's, with a file of weights or without.

    Attributes:
        run: The run, if it is one.
        checkpoint: Directory of one; None is the newest.
        model: timm's name.
        weights: The file.
    """

    run: RunDirectory | None = None
    checkpoint: Path | None = None
    model: str | None = None
    weights: Path | None = None


def validate(named: str, options: Options) -> int:
    """Evaluate on this machine; returns the exit code.

    Raises:
        ConfigError: For all mistakes that can be seen before the ranks start.
    """
    problems: list[Problem] = []
    subject = subject_of(named, options, problems)
    config = _config(subject, options, problems)
    sizes = _list(options.image_size, int, "--image-size", SIZE_ACCEPTED, problems, lambda value: value >= 1)
    crops = _list(options.crop_pct, float, "--crop-pct", CROP_ACCEPTED, problems, lambda value: 0.01 <= value <= 1)
    gpus = count_gpus() if config is None or config.trainer.accelerator != "cpu" else 0
    problems += _problems(subject, options, gpus)
    problems += missing_extra(config) if config is not None else ()
    if problems:
        raise ConfigError(problems)
    folder = options.out or (subject.run.path if subject.run is not None else Path())
    log_dir = folder / "logs" / "validate"
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        accepted = f"a folder that can be written ({error.strerror})"
        raise ConfigError([Problem(key="--out", received=str(folder), accepted=accepted)]) from None
    arguments = [
        *(f"--{name}={value}" for name, value in _single(subject, options, folder) if value is not None),
        *_several("--shards", options.shards),
        *_several("--image-sizes", sizes),
        *_several("--crop-pcts", crops),
        *_several("--overrides", options.overrides),
        *(["--quiet"] if options.quiet else []),
    ]
    directory = subject.run or RunDirectory(folder)
    return in_processes("validate", directory, arguments, log_dir=log_dir, devices=options.devices or gpus or 1)


def _single(subject: Subject, options: Options, folder: Path) -> Iterator[tuple[str, object]]:
    yield "checkpoint", subject.checkpoint
    yield "model", subject.model
    yield "weights", subject.weights
    yield "real-labels", options.real_labels
    yield "out", folder


def _several(name: str, values: Sequence[object]) -> list[str]:
    return [name, *map(str, values)] if values else []


def subject_of(named: str, options: Options, problems: list[Problem]) -> Subject:
    """What a user has named: a checkpoint or a file that is there, else a run, else a model."""
    path = Path(named).expanduser()
    of_checkpoint = path.parent if path.name == "checkpoint.ckpt" else path
    if (of_checkpoint / "manifest.json").is_file():
        run = RunDirectory(of_checkpoint.absolute().parents[1])
        if run.config_file.is_file():
            return Subject(run=run, checkpoint=of_checkpoint)
    if path.is_file():
        return Subject(model=options.model or "", weights=path)
    if named.startswith(ANY_OF_TIMM):
        return Subject(model=named.removeprefix(ANY_OF_TIMM))
    try:
        return Subject(run=RunDirectory.find(named), checkpoint=options.checkpoint)
    except ConfigError as error:
        if TIMMS.fullmatch(named):
            return Subject(model=named)
        problems += (
            Problem(key=each.key, received=each.received, accepted=f"{each.accepted}; or a model of timm, or a file")
            for each in error.problems
        )
        return Subject()


def _config(subject: Subject, options: Options, problems: list[Problem]) -> Config | None:
    """The run's, or that of any model, with the overrides; None where there is a mistake in these."""
    others = [text for text in options.overrides if not text.startswith(SECTIONS)]
    for text in others:
        accepted = "a setting of data or trainer" if "=" in text else "key=value; globs of --shards in quotes"
        problems.append(Problem(key="KEY=VALUE", received=shown(text), accepted=accepted))
    files = [str(subject.run.config_file)] if subject.run is not None else []
    shards = [] if files else ["data.train_shards=none", "data.val_shards=none"]
    known = [text for text in options.overrides if text not in others]
    try:
        return load_config(files, [*shards, *known]).config
    except ConfigError as error:
        problems += error.problems
        return None


def _list(
    text: str | None,
    number: Callable[[str], float],
    key: str,
    accepted: str,
    problems: list[Problem],
    is_valid: Callable[[float], bool],
) -> list[float]:
    """Numbers with commas between them."""
    if text is None:
        return []
    try:
        values = [number(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(is_valid, values)) or len(set(values)) < len(values):
        problems.append(Problem(key=key, received=text, accepted=accepted))
    return values


def _problems(subject: Subject, options: Options, gpus: int) -> Iterator[Problem]:
    """Options that are missing, or have no effect."""
    is_file, is_model = subject.weights is not None, subject.model is not None
    if is_file and not options.model:
        yield Problem(key="--model", received="nothing", accepted="timm's name of the network that the file is of")
    if not is_file and options.model is not None:
        yield Problem(key="--model", received=options.model, accepted="nothing: it is for a file of weights")
    if is_model and not options.shards:
        yield Problem(key="--shards", received="nothing", accepted="shards to evaluate on, or their list")
    if is_model and options.out is None:
        yield Problem(key="--out", received="nothing", accepted="a folder for the results")
    if options.checkpoint is not None and subject.checkpoint is not options.checkpoint and subject != Subject():
        received = str(options.checkpoint)
        yield Problem(key="--checkpoint", received=received, accepted="nothing: it is for a run, of which it is one")
    real = options.real_labels
    if real is not None and real != "imagenet" and not Path(real).expanduser().is_file():
        yield Problem(key="--real-labels", received=real, accepted="imagenet, or a file")
    if options.devices is not None and not 1 <= options.devices <= (gpus or options.devices):
        accepted = f"1 to {gpus}, the GPUs here" if gpus else "1 or more"
        yield Problem(key="--devices", received=str(options.devices), accepted=accepted)
