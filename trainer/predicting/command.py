"""``python -m trainer predict``: a run's network answers images, on all devices here."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from configs.problems import DataError
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.inspecting.contact_sheet import IMAGES
from datamodules.inspecting.shards import names_of_classes
from datamodules.predicting.images import InputImages, Prepared, input_loader
from datamodules.predicting.inputs import find_inputs
from trainer.assembly import build_module, rank_device, resolve_accelerator
from trainer.checkpoint_files import load_weights, read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.logs import logger
from trainer.module import EfficientNetModule
from trainer.network import image_size
from trainer.predicting.answers import Answer, answer_file, check_suffix, class_name
from trainer.predicting.progress import ImageProgress
from trainer.predicting.ranks import Ranks
from trainer.predicting.sheet import prediction_sheet
from trainer.predicting.tally import Tally
from trainer.processes import Processes

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TURNS = 16
"""Batches of each rank after which the answers are gathered and written."""
PRINTED = 20
"""Answers on the terminal where no file takes them all."""


def predict(
    run: RunDirectory,
    *,
    inputs: Path,
    checkpoint: Path | None,
    raw: bool,
    top_k: int,
    batch_size: int | None,
    out: Path | None,
    contact_sheet: Path | None,
    processes: Processes,
    console: Console,
    progress: Console | None = None,
) -> None:
    """Predict, write and print.

    Args:
        run: Whose network, settings and class names.
        inputs: File of JSON: ``paths``, and ``listed``, which are no globs.
        checkpoint: Directory of one; None is the newest.
        raw: The raw weights, also where there is an average.
        top_k: Classes for each image.
        batch_size: Images at once on a device; None is `data.eval_batch_size`.
        out: File for the answers; None prints them.
        contact_sheet: PNG of images with their answers.
        processes: Of this node.
        console: To print on.
        progress: To show progress on; None is the same.

    Raises:
        DataError: If no checkpoint verifies, there is nothing to predict, or not one image can be read.
    """
    if out is not None:
        check_suffix(out)
    config = run.load_config()
    accelerator = resolve_accelerator(
        config.model_copy(update={"data": config.data.model_copy(update={"decoder": "cpu"})})
    )
    named = json.loads(inputs.read_text(encoding="utf-8"))
    found = find_inputs(named["paths"], config.data, listed=named["listed"])
    path = CheckpointDirectory(run.checkpoints).chosen(checkpoint)
    weights, step = load_weights(path), read_manifest(path)["step"]
    kind = "raw" if raw or "ema" not in weights else "ema"
    device = rank_device(processes, accelerator)
    module = _network(config, weights[kind], device, processes)

    size = config.data.eval_image_size or image_size(config)
    images = InputImages(found, config.data, image_size=size, in_chans=config.model.in_chans)
    per_batch = batch_size or config.data.eval_batch_size
    batches = [range(first, min(first + per_batch, len(images))) for first in range(0, len(images), per_batch)]
    mine = batches[processes.global_rank :: processes.world_size]
    loader = input_loader(images, mine, config.data, pin_memory=accelerator == "cuda")
    ranks, first = Ranks(processes), processes.global_rank == 0
    classes = names_of_classes(config.data) if first else None
    tally = Tally(
        len(images), first=0 if out is not None else PRINTED, sheet=IMAGES if contact_sheet is not None else 0
    )
    top_k = min(top_k, config.data.num_classes)
    file = answer_file(out, classes, top_k=top_k) if out is not None and first else nullcontext(lambda _: None)
    with file as write, ImageProgress(len(images), progress or console) as shown:
        for answers in _in_order(loader, len(batches), ranks, partial(_answer, module, config, device, top_k), shown):
            for answer in answers:
                if answer.error is not None:
                    logger.warning("%s is skipped: %s", answer.image, answer.error)
            tally.add(answers)
            write(answers)
        seconds = shown.seconds
        if first and not tally.good:
            raise DataError(f"none of {tally.bad:,} images can be read; the first: {tally.first_error}")
    if not first:
        return
    if out is None:
        _print(tally, classes, console)
    if contact_sheet is not None:
        contact_sheet.parent.mkdir(parents=True, exist_ok=True)
        title = f"{run.run_id}, step {step}"
        contact_sheet.write_bytes(prediction_sheet(images, tally.sheet, classes, title=title, of=tally.good))
    _say(console, f"{kind} weights of step {step}: {tally.summary(seconds)}")


def _in_order(
    loader: Iterable[list[Prepared]],
    batches: int,
    ranks: Ranks,
    answer: Callable[[list[Prepared]], list[Answer]],
    shown: ImageProgress,
) -> Iterator[list[Answer]]:
    """On rank 0 the answers to all ranks' batches, some at a time, in the order of the inputs; on others nothing.

    Batches are dealt in turn: after as many of each rank, those of all ranks follow each other without a gap.
    """
    mine = iter(loader)
    for _ in range(0, ranks.turns(batches), TURNS):
        answers: list[Answer] = []
        for batch in islice(mine, TURNS):
            answers += answer(batch)
            shown.show(ranks.add(len(batch)))
        gathered = ranks.gather(answers)
        if gathered is not None:
            yield sorted(gathered)


def _network(
    config: Config, state: dict[str, torch.Tensor], device: torch.device, processes: Processes
) -> EfficientNetModule:
    torch.set_num_threads(config.trainer.num_threads or max((os.cpu_count() or 1) // processes.local_world_size, 1))
    # Compiling takes longer than most predictions do.
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"compile": None})})
    module = build_module(config, restored=True)
    module.network.load_state_dict(state)
    return module.to(device).eval()


def _answer(
    module: EfficientNetModule, config: Config, device: torch.device, top_k: int, batch: Sequence[Prepared]
) -> list[Answer]:
    """Answers to a batch, in its order."""
    good = [each.pixels for each in batch if each.pixels is not None]
    best: list[tuple[list[float], list[int]]] = []
    if good:
        # As a batch of validation lies in memory.
        images = torch.stack(good).contiguous(memory_format=torch.channels_last).to(device, non_blocking=True)
        dtype = AUTOCAST.get(config.trainer.precision)
        precision = torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()
        with torch.inference_mode(), precision:
            logits = module(images).float()
        top = logits.softmax(1).topk(min(top_k, logits.shape[1]))
        best = list(zip(top.values.tolist(), top.indices.tolist(), strict=True))
    answers, following = [], iter(best)
    for each in batch:
        probabilities, labels = next(following) if each.pixels is not None else ([], [])
        answers.append(Answer(each.number, each.name, each.label, tuple(labels), tuple(probabilities), each.error))
    return answers


def _print(tally: Tally, classes: Sequence[str] | None, console: Console) -> None:
    for answer in tally.first:
        pairs = zip(answer.labels, answer.probabilities, strict=True)
        named = ", ".join(f"{class_name(classes, label) or label} {share:.1%}" for label, share in pairs)
        _say(console, f"{answer.image}: {named}")
    if tally.good > len(tally.first):
        _say(console, f"… and {tally.good - len(tally.first):,} more: --out FILE has all")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
