"""A run's directory written by hand, and a report's page taken apart."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from configs.load import dump_yaml
from configs.rank_records import rank_error
from configs.run import RunDirectory
from tests.unit.configs.loading import config_of

HEADER = (
    "attempt,epoch,lr,samples_seen,step,throughput/data_wait_share,throughput/images_per_second,train/loss,train/top1,"
    "val/ema_loss,val/ema_top1,val/ema_top5,val/loss,val/top1,val/top5"
)
STARTED = 1_700_000_000.0
FAILED = {
    "attempt": 0,
    "exit_code": 1,
    "exit_class": "retry",
    "rank": 3,
    "host": "node2",
    "step": 14,
    "error": None,
    "reason": "killed by SIGKILL",
    "started": STARTED,
    "ended": STARTED + 100,
}
DONE = {
    **FAILED,
    "attempt": 1,
    "exit_code": 0,
    "exit_class": "done",
    **dict.fromkeys(("rank", "host", "step")),
    "reason": "done",
    "started": STARTED + 200,
    "ended": STARTED + 500,
}


@dataclass
class Element:
    """One of a page's, with all text below it."""

    name: str
    attributes: dict[str, str]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, name: str, style: str | None = None) -> list["Element"]:
        found = [self] if self.name == name and (style is None or style in self.classes) else []
        return [*found, *(each for child in self.children for each in child.all(name, style))]

    def section(self, heading: str) -> "Element":
        return next(each for each in self.all("section") if each.all("h2")[0].text == heading)

    def charts(self) -> dict[str, "Element"]:
        figures = [figure for figure in self.all("figure") if figure.all("svg", "chart")]
        return {figure.all("h3")[0].text: figure for figure in figures}

    def rows(self) -> list[list[str]]:
        return [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in self.all("tr")]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in ("meta", "link", "img"):
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def parsed(page: str) -> Element:
    """A page as a browser would understand it, if all of its elements are closed in order."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


def train_row(step: int, *, loss: float = 1.0, attempt: int = 0) -> str:
    return f"{attempt},{step / 10},0.01,{step * 8},{step},0.05,300.5,{loss},0.25,,,,,,"


def val_row(step: int, *, top1: float, attempt: int = 0) -> str:
    return f"{attempt},{step / 10},,{step * 8},{step},,,,,0.5,{top1 + 0.01},0.9,0.6,{top1},0.8"


def new_run(path: Path, *overrides: str, rows: Iterable[str] = (), outcomes: Iterable[object] = ()) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    run.config_file.write_text(dump_yaml(config_of(*overrides)))
    lines = list(rows)
    if lines:
        run.metrics_file.write_text("\n".join([HEADER, *lines]) + "\n")
    for outcome in outcomes:
        run.record_outcome(outcome)  # type: ignore[arg-type]
    return run


def picture(colour: str, file_format: str = "PNG", side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format=file_format)
    return buffer.getvalue()


def prediction(where: str | None, *, label: int = 0, predicted: int = 1, **changes: object) -> dict[str, object]:
    """As validation.json has one."""
    return {
        "picture": where, "sample": 7, "shard": "s3://bucket/val-00001.tar", "key": "n01/img_7", "label": label,
        "predicted": predicted, "confidence": 0.75, "label_probability": 0.125, "loss": 2.08, **changes,
    }  # fmt: skip


def leave_validation(run: RunDirectory, names: list[str] | None = None, **result: object) -> None:
    """What a validation of averaged weights leaves; pictures are red, and blue."""
    pictures = run.path / "validation" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "red.png").write_bytes(picture("red"))
    (pictures / "blue.jpg").write_bytes(picture("blue", "JPEG", side=224))
    found = {"results": [{"weights": "ema", "image_size": 32, "top1": 0.5, **result}], "class_names": names}
    (run.path / "validation.json").write_text(json.dumps(found))


def leave_error(run: RunDirectory, attempt: int, rank: int, *, reason: str) -> None:
    run.log_dir(attempt).mkdir(parents=True, exist_ok=True)
    left = {"time": STARTED + 90 + rank, "rank": rank, "host": "node2", "step": 14, "exit_code": 1, "reason": reason}
    rank_error(run.log_dir(attempt), rank).write_text(json.dumps(left))
