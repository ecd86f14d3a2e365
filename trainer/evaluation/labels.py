"""Labels from elsewhere, by the names of the images: ImageNet-ReaL's, or of a file such as for ImageNet-V2.

ReaL's ``real.json`` (Beyer et al., Are we done with ImageNet?, arXiv 2006.07159) is a list with an entry for each image
of ImageNet's validation split, in the order of the numbers in their names; timm comes with a copy. Any other file is an
object: from an image's name, or the end of its path, with or without its extension, to its class or classes.
"""

import json
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.problems import ConfigError, Problem, shown
from datamodules.indexing.scan import split_name

IMAGENET_REAL = "imagenet"
"""In place of a file: the copy that timm has."""
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
ACCEPTED = f'{IMAGENET_REAL}, or a file of JSON: ReaL\'s list, or an object such as {{"name of an image": 7}}'

RealLabels = Mapping[str | int, frozenset[int]]


def read_real_labels(source: str) -> RealLabels:
    """Classes by name, or by the number in ImageNet's names, from 1.

    Raises:
        ConfigError: If there is no such file, or it holds anything else.
    """
    try:
        if source == IMAGENET_REAL:
            contents = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json") or b""
        else:
            contents = Path(source).expanduser().read_bytes()
        content = json.loads(contents)
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(source, f"{ACCEPTED} ({error})") from None
    entries: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        entries = [(split_name(name)[0], classes) for name, classes in content.items()]
    elif isinstance(content, list):
        entries = list(enumerate(content, start=1))
    found = {key: _classes(value) for key, value in entries}
    bad = next((key for key, classes in found.items() if classes is None), None)
    if not entries or bad is not None:
        where = "" if bad is None else f" (the entry of {shown(bad)} is no class, and no list of classes)"
        raise _refused(source, ACCEPTED + where)
    return {key: classes for key, classes in found.items() if classes is not None}


def labels_of(key: str, real: RealLabels) -> frozenset[int] | None:
    """Those of a sample by its key; None if they say nothing of it."""
    numbered = NUMBERED.search(key)
    if numbered is not None and int(numbered[1]) in real:
        return real[int(numbered[1])]
    parts = key.split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((real[tail] for tail in tails if tail in real), None)


def _refused(source: str, accepted: str) -> ConfigError:
    return ConfigError([Problem(key="--real-labels", received=source, accepted=accepted)])


def _classes(value: Any) -> frozenset[int] | None:
    values = value if isinstance(value, list) else [value]
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in values)
    return frozenset(values) if whole else None
