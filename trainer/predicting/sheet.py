"""A page of images with what the network takes them for."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datamodules.inspecting.contact_sheet import Cell, cell, draw_cells, name_and_id
from datamodules.inspecting.kinds import KINDS
from datamodules.predicting.images import InputImages
from trainer.predicting.answers import Answer


def prediction_sheet(
    images: InputImages, answers: Sequence[Answer], classes: Sequence[str] | None, *, title: str, of: int
) -> bytes:
    """A PNG of images with class and probability, and the right class where that is another.

    Args:
        images: That were predicted.
        answers: To those that are shown.
        classes: Names by label.
        title: In large letters above.
        of: How many images have an answer.
    """
    cells = []
    for answer in answers:
        name, _ = name_and_id(answer.labels[0], classes)
        note = f"{answer.probabilities[0]:.1%} · "
        if answer.label is None or answer.label == answer.labels[0]:
            note += Path(answer.image).name if answer.label is None else "right"
        else:
            note += f"is {name_and_id(answer.label, classes)[0]}"
        cells.append(_cell(images, answer, name, note))
    return draw_cells(cells, title=title, subtitle=f"{len(answers)} of {of:,} {KINDS[images.modality].plural}")


def _cell(images: InputImages, answer: Answer, name: str, note: str) -> Cell:
    """An image as it is; what is in its place, as the network sees it."""
    contents = images.read(answer.number).contents
    if images.modality == "image":
        return cell(answer.image, contents, name, note)
    return Cell(Image.fromarray(images.picture(contents)[0].numpy()).convert("RGB"), name, note)
