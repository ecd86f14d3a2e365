"""``python -m trainer validate``: a network's exact figures on a split, at each test resolution and crop asked for."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console

from configs.problems import ConfigError, Problem
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.splits import open_split, shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.inspecting.shards import class_names
from datamodules.streaming.shard_reader import ShardReader
from datamodules.streaming.transforms import shown_share
from trainer.assembly import build_datamodule, build_trainer, rank_device, resolve_accelerator
from trainer.evaluation.extremes import Examples
from trainer.evaluation.figures import figures
from trainer.evaluation.labels import RealLabels, labels_of, read_real_labels
from trainer.evaluation.pictures import described
from trainer.evaluation.results import Evaluation, Result, Setting, print_tables, write
from trainer.evaluation.samples import WEIGHTS, Outputs, SampleTable
from trainer.evaluation.subjects import Subject, of_file, of_run, of_timm
from trainer.processes import Processes
from trainer.progress import EvaluationProgress


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be evaluated, and how.

    Attributes:
        run: Directory of the run; without one, the folder of results.
        checkpoint: Directory of one of the run's; None is the newest.
        model: A model of timm's, in place of a run.
        weights: A file for it; None are the weights that timm publishes.
        shards: As ``data.val_shards`` takes them; none are the run's own.
        image_sizes: Sides of images in pixels; none is the subject's own. A network often does better on larger ones
            than it was trained on (Touvron et al., arXiv 1906.06423).
        crop_pcts: Shares of the resized short side that the crop takes; none is the subject's own.
        real_labels: A file of other labels, or ``imagenet``.
        out: Folder of results; None is the run's.
        overrides: ``key=value`` of settings of data and trainer.
    """

    run: Path
    checkpoint: Path | None = None
    model: str | None = None
    weights: Path | None = None
    shards: tuple[str, ...] = ()
    image_sizes: tuple[int, ...] = ()
    crop_pcts: tuple[float, ...] = ()
    real_labels: str | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()


def validate(request: Request, *, processes: Processes, console: Console, progress: Console | None = None) -> None:
    """Print the figures, and write them to ``validation.json``, with plots and confusion matrices beside it.

    Args:
        request: What is to be evaluated.
        processes: Of this machine.
        console: To print on.
        progress: To show progress on; None is the same.

    Raises:
        ConfigError: If subject, shards and labels do not fit each other, with all that does not.
        DataError: If weights or shards are damaged or missing.
        UnreachableError: If a server does not answer.
    """
    subject, real = _read(request)
    config = _of_evaluation(subject.config, request.shards, processes.world_size)
    index, names = _split(config)
    problems = list(_problems(subject, request, index, names, real, config))
    if problems:
        raise ConfigError(problems)
    accelerator = resolve_accelerator(config)
    if subject.module.average is not None:
        # Lightning, which moves the raw weights, does not see these.
        average = subject.module.average.to(rank_device(processes, accelerator))
        average.eval().requires_grad_(requires_grad=False)
    table = SampleTable(examples=config.tracking.examples or 0)
    callbacks = [table, EvaluationProgress(progress or console)]
    trainer = build_trainer(config, processes, accelerator, callbacks=callbacks, loggers=[])
    sizes, crops = request.image_sizes or (subject.image_size,), request.crop_pcts or (shown_share(config.data),)
    found: dict[Setting, tuple[Outputs, dict[str, Examples]]] = {}
    for image_size, crop_pct in product(sizes, crops):
        data = config.data.model_copy(update={"eval_image_size": image_size, "crop_pct": crop_pct})
        datamodule = build_datamodule(config.model_copy(update={"data": data}), accelerator)
        trainer.validate(subject.module, datamodule, verbose=False)
        for prefix, outputs in table.outputs.items():
            found[Setting(image_size, crop_pct, WEIGHTS[prefix])] = outputs, table.examples.get(prefix, {})
    if not trainer.is_global_zero:
        return
    by_sample = _real_by_sample(real, index, config) if real is not None else None
    cache = shard_cache(config.data)
    evaluation = Evaluation(
        subject=subject.name,
        checkpoint=str(subject.checkpoint) if subject.checkpoint is not None else None,
        step=subject.step,
        shards=tuple(map(str, index.shards)),
        index_hash=index.digest,
        num_classes=subject.num_classes,
        class_names=names,
        devices=processes.world_size,
        results=tuple(
            Result(
                setting,
                figures(outputs, num_classes=subject.num_classes, real=by_sample),
                described(examples, outputs, index, cache),
            )
            for setting, (outputs, examples) in found.items()
        ),
    )
    folder = request.out or request.run
    write(evaluation, folder)
    print_tables(evaluation, folder, console)


def _read(request: Request) -> tuple[Subject, RealLabels | None]:
    """Network and labels.

    Raises:
        ConfigError: If there is no such network, or no such labels, or neither.
    """
    real, problems = None, list[Problem]()
    try:
        real = read_real_labels(request.real_labels) if request.real_labels is not None else None
    except ConfigError as error:
        problems += error.problems
    try:
        subject = _subject(request)
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    if problems:
        raise ConfigError(problems)
    return subject, real


def _subject(request: Request) -> Subject:
    if request.model is None:
        return of_run(RunDirectory(request.run), request.checkpoint, request.overrides)
    if request.weights is None:
        return of_timm(request.model, request.overrides)
    return of_file(request.weights, request.model, request.overrides)


def _of_evaluation(config: Config, shards: tuple[str, ...], world_size: int) -> Config:
    """As the subject's, without what is about training: its shards may be gone, its batches dealt to others."""
    found = shards or config.data.val_shards
    batch = {"global_batch_size": config.data.micro_batch_size * world_size, "num_lanes": 1}
    data = config.data.model_copy(update={"train_shards": found, "val_shards": found, **batch})
    trainer = config.trainer
    if trainer.strategy == "deepspeed":
        trainer = trainer.model_copy(update={"strategy": "auto"})
    return config.model_copy(update={"data": data, "trainer": trainer})


def _split(config: Config) -> tuple[ShardIndex, list[str] | None]:
    """The index of the split, and the names of its classes, if ``classes.json`` is beside it."""
    cache = shard_cache(config.data)
    found = find_shards(config.data.val_shards, cache.remote)
    index = open_split(found, cache=cache, index_dir=config.data.index_dir, modality=config.data.modality)
    return index, class_names(index.shards[0], cache)


def _problems(
    subject: Subject,
    request: Request,
    index: ShardIndex,
    names: list[str] | None,
    real: RealLabels | None,
    config: Config,
) -> Iterator[Problem]:
    """What of subject, shards and labels does not fit."""
    if request.crop_pcts and config.data.modality != "image":
        received = ",".join(f"{crop_pct:g}" for crop_pct in request.crop_pcts)
        accepted = f"nothing: data.modality = {config.data.modality} shows the whole of its pictures"
        yield Problem(key="--crop-pct", received=received, accepted=accepted)
    classes, of_subject = subject.num_classes, f"the classes of {subject.name}: {subject.num_classes}"
    lowest, highest = int(index.labels.min()), int(index.labels.max())
    shards = f"{index.shards[0]}" + (f" and {len(index.shards) - 1} more" if len(index.shards) > 1 else "")
    if lowest < 0 or highest >= classes:
        labels = f"labels {lowest} to {highest} in {shards}" + (" (-1: without a label)" if lowest < 0 else "")
        yield Problem(key="--shards", received=labels, accepted=f"labels 0 to {classes - 1}, {of_subject}")
    if names is not None and len(names) != classes:
        received = f"{len(names)} classes in classes.json beside {shards}"
        yield Problem(key="--shards", received=received, accepted=of_subject)
    if real is None:
        return
    beyond = max((max(found, default=0) for found in real.values()), default=0)
    if beyond >= classes:
        accepted = f"classes up to {classes - 1}, {of_subject}"
        yield Problem(key="--real-labels", received=f"class {beyond} in {request.real_labels}", accepted=accepted)
    with closing(ShardReader(index, shard_cache(config.data))) as reader:
        key = reader.key(0)
    if labels_of(key, real) is None:
        accepted = f"labels of {key}, the first image in {shards}"
        yield Problem(key="--real-labels", received=str(request.real_labels), accepted=accepted)


def _real_by_sample(real: RealLabels, index: ShardIndex, config: Config) -> list[frozenset[int]]:
    """Other labels by the number of a sample; none where the file does not speak of it."""
    with closing(ShardReader(index, shard_cache(config.data))) as reader:
        return [labels_of(reader.key(sample), real) or frozenset() for sample in range(len(index))]
