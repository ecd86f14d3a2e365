"""The training loop: beside a bare PyTorch loop, beside timm's train.py, two processes beside one; waiting for data.

All in one run. Loops take turns of a few steps each, in processes that wait meanwhile (benchmarks/turns.py), on the
same batches of random uint8 images in memory; medians over the turns of the ratio within one. B0 with RMSprop, label
smoothing and averaged weights; on the CPU in fp32, on a GPU in bf16 (autocast), channels_last on both.

- `overhead_vs_bare`: time of `effnet fit` (all callbacks, rows of metrics, skipping of bad steps, as by default) over
  that of a loop with the same network, optimizer, average and host memory and nothing else. 1.02 is 2% slower.
- `speed_vs_timm_train`: images a second of `effnet fit` over those of timm's train.py, the file that `--timm-train`
  names; left out without it.
- `speed_2_processes_vs_1`: images a second of two processes on a core each over one on one core, the same batch each.
  The table has beside it what two runs reach that are not connected.
- `data_wait_share`: of a real run from shards of photographs with loader processes, the share of time spent waiting.
- With a GPU the same with `gpu_` (but for two processes), and for B0 at 224, B4 at 380 and V2-S at 300 pixels, each
  eager and compiled: `gpu_images_per_second_<configuration>` at the batch size that is best for eager, and in the table
  shares of the device's matrix and memory limits, measured by a large product and a large copy. Without `--quick` each
  of these also beside the other loops.

    python -m benchmarks.train [--quick] [--only cpu|gpu] [--timm-train PATH]
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import timm
import torch

from benchmarks.limits import bandwidth_limit, matrix_limit, work
from benchmarks.measure import finish, median_ratio, report
from benchmarks.photographs import write_shards
from benchmarks.runs import finished, settings
from benchmarks.turns import Loop, Shape, Unconnected, take_steps
from configs.run import RunDirectory

TARGETS = {
    "overhead_vs_bare": "at most 1.03",
    "speed_vs_timm_train": "at least 1.0",
    "speed_2_processes_vs_1": "at least 1.8",
    "data_wait_share": "under 0.01",
    "gpu_overhead_vs_bare": "at most 1.02",
    "gpu_speed_vs_timm_train": "at least 1.15",
    "gpu_data_wait_share": "under 0.01",
}
CPU = ("trainer.accelerator=cpu", "trainer.precision=32-true")
GPU = ("trainer.accelerator=cuda", "trainer.precision=bf16-mixed")
NETWORKS = {
    "b0_224": ("efficientnet_b0", 224, (256, 512, 1024)),
    "b4_380": ("efficientnet_b4", 380, (64, 128, 256)),
    "v2_s_300": ("efficientnetv2_s", 300, (128, 256, 512)),
}
"""Of timm, with the size of images and batch sizes to try."""
TIMM = (
    *("--opt=rmsproptf", "--lr=0.016", "--weight-decay=1e-5", "--momentum=0.9", "--sched=cosine", "--drop=0.2"),
    *("--drop-path=0.2", "--smoothing=0.1", "--model-ema", "--model-ema-decay=0.9999", "--channels-last", "--no-aug"),
    *("--workers=0", "--epochs=1"),
)
"""effnet's defaults, as timm's train.py spells them."""
Medians = dict[str, float]
Row = tuple[str, str, str]


class Configuration(NamedTuple):
    """What is trained on a GPU, and how."""

    model: str
    shape: Shape
    compiled: bool = False

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of effnet's settings, without the network's name."""
        return (*GPU, "trainer.compile=default") if self.compiled else GPU

    def loop(self) -> Loop:
        """`effnet fit` with it."""
        batch, size = self.shape
        return Loop("benchmarks.loops", ["effnet", str(batch), str(size), f"model.name={self.model}", *self.overrides])


def compare(
    shape: Shape,
    overrides: tuple[str, ...],
    timm_train: Path | None,
    *,
    rounds: int,
    steps: int,
    model: str = "efficientnet_b0",
) -> tuple[Medians, Medians]:
    """Ratios of effnet to the others, and medians of seconds a step."""
    place, cuda = (str(shape.batch), str(shape.size)), overrides[0].endswith("cuda")
    ours = [*place, f"model.name={model}", *overrides]
    commands = {
        "effnet fit": ("benchmarks.loops", ["effnet", *ours]),
        "bare PyTorch": ("benchmarks.loops", ["bare", *ours]),
    }
    if timm_train is not None:
        flags = [f"--model={model}", "--amp", "--amp-dtype=bfloat16"] if cuda else [f"--model={model}", "--device=cpu"]
        compiled = ["--torchcompile"] if any(each.startswith("trainer.compile=") for each in overrides) else []
        theirs = [str(timm_train.resolve()), *place, *TIMM, *flags, *compiled]
        commands["timm's train.py"] = ("benchmarks.timm_loop", theirs)
    found = measured({name: Loop(*command) for name, command in commands.items()}, rounds=rounds, steps=steps)
    values = {"overhead_vs_bare": median_ratio(found["effnet fit"], found["bare PyTorch"])}
    if timm_train is not None:
        values["speed_vs_timm_train"] = median_ratio(found["timm's train.py"], found["effnet fit"])
    return values, {name: statistics.median(seconds) for name, seconds in found.items()}


def measured(loops: Mapping[str, Loop | Unconnected], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step in each round; the loops are ended."""
    try:
        return take_steps(loops, rounds=rounds, steps=steps)
    finally:
        for loop in loops.values():
            loop.close()


def two_processes(shape: Shape, *, rounds: int, steps: int) -> tuple[float, float]:
    """Images a second of two processes on a core each over those of one on a core: two ranks, and two separate runs.

    The second is what the machine has room for: two cores share caches and memory.

    Raises:
        RuntimeError: If there is one core only.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RuntimeError("two processes need two cores")
    arguments = ["effnet", str(shape.batch), str(shape.size), *CPU, "trainer.num_threads=1"]
    loops = {
        "one process": Loop("benchmarks.loops", arguments, cores=[cores[:1]]),
        "two ranks": Loop("benchmarks.loops", arguments, cores=[cores[:1], cores[1:]]),
        "two runs": Unconnected([Loop("benchmarks.loops", arguments, cores=[[core]]) for core in cores]),
    }
    found = measured(loops, rounds=rounds, steps=steps)
    one = found["one process"]
    return 2 * median_ratio(one, found["two ranks"]), 2 * median_ratio(one, found["two runs"])


def data_wait_share(folder: Path, overrides: tuple[str, ...], *, steps: int, **changes: object) -> float:
    """The median over the rows of a real run, but for the first, in which loader processes start."""
    run = RunDirectory(folder / "from-shards")
    changes = {"trainer__max_steps": steps, "data__num_workers": 1, "data__prefetch_batches": 8, **changes}
    finished(run, [*settings(folder, **changes), *overrides])
    with run.metrics_file.open(newline="") as file:
        rows = [row["throughput/data_wait_share"] for row in csv.DictReader(file)]
    return statistics.median([float(share) for share in rows if share][1:])


def images_per_second(asked: Mapping[str, Configuration], *, steps: int) -> Medians:
    """Of `effnet fit`; without those whose batch does not fit the device. They start together and then train in turn.

    So a device holds one of them at a time. What compiles has done so before, all of them at once, into torch's cache:
    that is long, does not keep the device busy, and is done too where the step after it finds no memory.
    """
    with ExitStack() as ends, ThreadPoolExecutor() as threads:

        def started(names: Iterable[str]) -> dict[str, Loop]:
            loops = {name: asked[name].loop() for name in names}
            for loop in loops.values():
                ends.callback(loop.close)
            return loops

        compiling = started(name for name, each in asked.items() if each.compiled)
        wait([threads.submit(loop.seconds, 1) for loop in compiling.values()])
        for loop in compiling.values():
            loop.close()
        found = {}
        for name, loop in started(asked).items():
            try:
                seconds = take_steps({name: loop}, rounds=3, steps=steps)[name]
                found[name] = asked[name].shape.batch / statistics.median(seconds)
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
            loop.close()
    return found


def on_gpu(timm_train: Path | None, *, rounds: int, steps: int, whole: bool) -> tuple[Medians, list[Row]]:
    """All figures of the GPU, and rows for the table; if ``whole``, with each network beside the other loops."""
    device = torch.device("cuda")
    limits = (matrix_limit(device, torch.bfloat16), bandwidth_limit(device))
    torch.cuda.empty_cache()
    rows: list[Row] = [
        ("a large matrix product, bf16", f"{limits[0] / 1e12:,.0f} TFLOP/s", ""),
        ("a large copy, read and written", f"{limits[1] / 1e12:.2f} TB/s", ""),
    ]
    ratios, medians = compare(Shape(256, 224), GPU, timm_train, rounds=rounds, steps=steps)
    values = {f"gpu_{name}": value for name, value in ratios.items()}
    rows += [(f"{name}, ms a step of 256 on the GPU", f"{1000 * s:.1f}", "") for name, s in medians.items()]
    best: dict[str, Configuration] = {}
    for name, (model, size, batches) in NETWORKS.items():
        eager = {str(batch): Configuration(model, Shape(batch, size)) for batch in batches}
        speeds = images_per_second(eager, steps=steps)
        if not speeds:
            continue
        rows += [(f"{name}, batch {batch}", f"{speed:,.0f} images/s", "") for batch, speed in speeds.items()]
        batch = max(speeds, key=lambda each: speeds[each])
        best[name] = eager[batch]
        best[f"{name}_compiled"] = eager[batch]._replace(compiled=True)
        values[f"gpu_images_per_second_{name}"] = speeds[batch]
    compiled = {name: each for name, each in best.items() if each.compiled}
    values |= {
        f"gpu_images_per_second_{name}": speed for name, speed in images_per_second(compiled, steps=steps).items()
    }
    for name, (model, shape, _) in best.items():
        speed = values.get(f"gpu_images_per_second_{name}")
        if speed is None:
            continue
        asked = work(timm.create_model(model), batch=shape.batch, size=shape.size, dtype=torch.bfloat16)
        shares = [speed / shape.batch * part / limit for part, limit in zip(asked, limits, strict=True)]
        text = f"{shares[0]:.0%} of the product's rate, {shares[1]:.0%} of the copy's (unfused)"
        rows.append((f"{name}, batch {shape.batch}", text, ""))
    for name, each in best.items() if whole else ():
        try:
            ratios, _ = compare(each.shape, each.overrides, timm_train, rounds=rounds, steps=steps, model=each.model)
        except RuntimeError as error:  # three processes together may need more memory than there is
            print(f"{name}: {error}", file=sys.stderr)
            continue
        rows += [(f"{name}, {ratio}", f"{value:.4g}", "") for ratio, value in ratios.items()]
    return values, rows


def main() -> None:
    """Measure all, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--only", choices=["cpu", "gpu"], help="measure on this kind of device alone")
    parser.add_argument("--timm-train", type=Path, metavar="PATH", help="train.py of a checkout of timm")
    arguments = parser.parse_args()
    timm_train: Path | None = arguments.timm_train
    if arguments.only == "gpu" and not torch.cuda.is_available():
        parser.error("--only gpu: no CUDA device is here")
    if timm_train is not None and not timm_train.is_file():
        parser.error(f"--timm-train: {timm_train} is no file; accepted: train.py of a checkout of timm")
    rounds, steps = (9, 3) if arguments.quick else (25, 5)
    shape = Shape(16, 224)
    values: Medians = {}
    rows: list[Row] = []
    if arguments.only != "gpu":
        values, medians = compare(shape, CPU, timm_train, rounds=rounds, steps=steps)
        rows += [(f"{name}, ms a step of {shape.batch}", f"{1000 * s:.1f}", "") for name, s in medians.items()]
        if len(os.sched_getaffinity(0)) > 1:
            values["speed_2_processes_vs_1"], apart = two_processes(shape, rounds=rounds, steps=steps)
            rows.append(("two runs that share nothing but the machine, over one", f"{apart:.4g}", ""))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, shards=2, samples=64, different=8)
        if arguments.only != "gpu":
            batch = {"data__global_batch_size": 8, "data__micro_batch_size": 8, "data__image_size": 128}
            share = data_wait_share(folder, CPU, steps=40, **batch)
            values["data_wait_share"] = share
        if torch.cuda.is_available() and arguments.only != "cpu":
            found, gpu_rows = on_gpu(timm_train, rounds=rounds, steps=4 * steps, whole=not arguments.quick)
            rows += gpu_rows
            batch = {"data__global_batch_size": 64, "data__micro_batch_size": 64, "data__image_size": 224}
            batch |= {"data__num_workers": max((os.cpu_count() or 1) - 1, 1)}
            found["gpu_data_wait_share"] = data_wait_share(folder, GPU, steps=60, **batch)
            values |= found
    table = [(name, f"{value:.4g}", TARGETS.get(name, "")) for name, value in values.items()] + rows
    devices = [f"{os.cpu_count()} cores", *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])]
    title = f"Medians of {rounds} rounds on {', '.join(devices)}; torch {torch.__version__}, timm {timm.__version__}"
    report(title, ("figure", "value", "target"), table)
    finish(values)


if __name__ == "__main__":
    main()
