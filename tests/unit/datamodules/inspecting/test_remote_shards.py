"""`effnet shards verify` and `info` on servers say what they say of the same files here, and fetch each shard once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datamodules.storage import failures, filesystems
from tests.s3 import s3_server
from tests.unit.datamodules.archives import write_tar
from tests.unit.datamodules.sources import jpeg, shards_command, shards_main
from tests.web import FaultyServer

NAMES = "toy-train-{00000..00002}.tar"
SHARDS = [f"toy-train-{i:05d}.tar" for i in range(3)]


class Place(NamedTuple):
    folder: Path
    url: str


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of four images, of classes 0 to 3, and two names of classes."""
    made = tmp_path / "toy"
    made.mkdir()
    for i, shard in enumerate(SHARDS):
        members = []
        for k in range(4):
            members += [(f"{i}-{k}.jpg", jpeg(4 * i + k, (40, 30))), (f"{i}-{k}.cls", str(k).encode())]
        write_tar(made / shard, members)
    (made / "classes.json").write_text(json.dumps(["cat", "dog"]))
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    made = FaultyServer(folder)
    yield made
    made.close()


@pytest.fixture(params=["http", "s3"])
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    if request.param == "http":
        server = FaultyServer(folder)
        yield Place(folder, server.url())
        server.close()
        return
    with s3_server("images") as s3:
        for file in folder.iterdir():
            s3.client().upload_file(str(file), "images", f"toy/{file.name}")
        filesystems._filesystem_of.cache_clear()
        yield Place(folder, "s3://images/toy/")
    filesystems._filesystem_of.cache_clear()


def options(tmp_path: Path) -> list[object]:
    return ["--cache-dir", tmp_path / "cache"]


def test_what_is_bad_is_found_on_a_server_as_here(place: Place, tmp_path: Path) -> None:
    for workers in (1, 2):
        found = shards_main("verify", f"{place.url}{NAMES}", "--workers", workers, *options(tmp_path), expected=93)
        here = shards_main("verify", place.folder, "--workers", workers, expected=93)
        assert found == here
    assert found.count("label 2, but there are 2 classes") == found.count("label 3, but there are 2 classes") == 3
    assert "12 samples in 3 shards: 6 bad" in found


def test_figures_of_shards_on_a_server_are_those_of_files_here(place: Place, tmp_path: Path) -> None:
    sheets = [tmp_path / "there.png", tmp_path / "here.png"]
    index = ["--index-dir", tmp_path / "indexes"]
    found = shards_main("info", f"{place.url}{NAMES}", "--contact-sheet", sheets[0], *index, *options(tmp_path))
    here = shards_main("info", place.folder, "--contact-sheet", sheets[1])
    assert "classes: 4" in found
    assert "toy-train: 12 samples in 3 shards" in found
    assert found.replace("there.png", "here.png") == here
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_commands_read_through_one_cache(server: FaultyServer, tmp_path: Path) -> None:
    (server.folder / "classes.json").write_text(json.dumps(["a", "b", "c", "d"]))
    url, index = server.url(NAMES), ["--index-dir", tmp_path / "indexes"]
    assert "all good" in shards_command("verify", url, "--workers", 2, *options(tmp_path))
    shards_command("index", url, *index, *options(tmp_path))
    shards_command("info", url, *index, *options(tmp_path))
    assert [server.gets(shard) for shard in SHARDS] == [1] * 3


def test_labels_have_no_bound_where_a_server_has_no_names(server: FaultyServer, tmp_path: Path) -> None:
    (server.folder / "classes.json").unlink()
    assert "12 samples in 3 shards: all good" in shards_main("verify", server.url(NAMES), *options(tmp_path))


def test_names_that_are_none_are_a_message(server: FaultyServer, tmp_path: Path) -> None:
    (server.folder / "classes.json").write_text("{}")
    for command in ("verify", "info"):
        output = shards_main(command, server.url(NAMES), *options(tmp_path), expected=93)
        assert "classes.json: not a list of class names" in output


def test_shards_that_are_missing_or_cut_off_are_bad_and_the_others_are_looked_at(
    server: FaultyServer, tmp_path: Path
) -> None:
    (server.folder / SHARDS[0]).unlink()
    whole = (server.folder / SHARDS[1]).read_bytes()
    (server.folder / SHARDS[1]).write_bytes(whole[:3000])
    arguments = ["verify", server.url(NAMES), "--num-classes", 4, "--workers", 1, *options(tmp_path)]
    output = shards_main(*arguments, expected=93)
    assert f"{SHARDS[0]}: (shard): ClientResponseError: 404" in output
    assert f"{SHARDS[1]}: (shard): truncated tar" in output
    assert "2 bad" in output


def test_a_server_that_fails_for_good_ends_the_command_to_be_given_again(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "LONGEST_PAUSE_S", 0.01)
    server.always[f"/{SHARDS[1]}"] = "503"
    output = shards_main("verify", server.url(NAMES), "--workers", 1, *options(tmp_path), expected=1)
    assert f"{SHARDS[1]}: 8 attempts failed, the last with ClientResponseError: 503" in output


def test_a_cache_that_has_no_room_for_a_shard_is_no_fault_of_the_shard(server: FaultyServer, tmp_path: Path) -> None:
    small = ["--cache-bytes", 5000, *options(tmp_path)]
    for command in (["verify", "--workers", 1], ["info"], ["index"]):
        output = shards_main(*command, server.url(NAMES), *small, expected=93)
        assert "error: data.cache_bytes is 5,000: too little" in output
