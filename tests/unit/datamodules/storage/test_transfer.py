"""Downloads that break off: they go on where they were, and never mix two versions of a file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from configs.problems import DataError
from datamodules.storage import failures, filesystems, transfer
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Url
from datamodules.storage.remote import Remote
from tests.clouds import gs_server
from tests.s3 import environment
from tests.web import FaultyServer

CONTENTS = os.urandom(6_000_000)
LOST = 600_000
"""Bytes that a break may cost: what a client has not read yet, or a part."""


class Place(NamedTuple):
    server: FaultyServer
    file: Path
    url: Url
    media: str


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(transfer, "PART_BYTES", 250_000)


@pytest.fixture(params=["http", "s3", "gs"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    file = tmp_path / "served" / "bucket" / "0.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENTS)
    if request.param == "gs":
        with gs_server(tmp_path / "served") as (server, _):
            yield Place(server, file, Url("gs://bucket/0.tar"), server.media("bucket", "0.tar"))
        return
    plain = FaultyServer(tmp_path / "served")
    for name, value in environment(plain.url().rstrip("/")).items():
        monkeypatch.setenv(name, value)
    filesystems._filesystem_of.cache_clear()
    url = plain.url("bucket/0.tar") if request.param == "http" else "s3://bucket/0.tar"
    yield Place(plain, file, Url(url), "/bucket/0.tar")
    plain.close()
    filesystems._filesystem_of.cache_clear()


def download(place: Place, tmp_path: Path, *, timeout_s: float = 10.0) -> bytes:
    access, file = Remote(attempts=4, timeout_s=timeout_s), tmp_path / "file"
    file.touch()
    access.download(place.url, file, access.stat(place.url))
    return file.read_bytes()


@pytest.mark.parametrize("faults", [["truncate", "truncate"], ["truncate", "503", "reset"], ["reset", "truncate"]])
def test_what_has_come_is_not_asked_for_again(faults: list[str], place: Place, tmp_path: Path) -> None:
    place.server.faults[place.media] = list(faults)
    assert download(place, tmp_path) == CONTENTS
    assert place.server.faults[place.media] == []
    assert len(CONTENTS) <= place.server.sent[place.media] <= len(CONTENTS) + LOST * len(faults)


def test_what_stalls_is_given_up_and_goes_on_where_it_was(place: Place, tmp_path: Path) -> None:
    place.server.faults[place.media] = ["stall"]
    assert download(place, tmp_path, timeout_s=3.0) == CONTENTS
    assert place.server.running >= 1  # it stalls still
    assert place.server.sent[place.media] <= len(CONTENTS) + LOST


@pytest.mark.parametrize("size", [len(CONTENTS), 2_000_000, 7_000_000])
def test_a_shard_that_is_replaced_between_attempts_is_noticed(
    size: int, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, file = Remote(attempts=4, timeout_s=10), tmp_path / "file"
    file.touch()
    old = access.stat(place.url)
    place.server.faults[place.media] = ["ok"] * 5 * (place.url.protocol != "http") + ["truncate"]
    replaced = lambda _: place.file.write_bytes(os.urandom(size))  # noqa: E731
    monkeypatch.setattr(failures.time, "sleep", replaced)
    with pytest.raises(DataError, match="has changed since it was indexed"):
        access.download(place.url, file, old)
    assert place.server.faults[place.media] == []


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "0.tar").write_bytes(CONTENTS)
    server = FaultyServer(tmp_path / "served")
    yield Place(server, tmp_path / "served" / "0.tar", Url(server.url("0.tar")), "/0.tar")
    server.close()


def ignoring_range(server: FaultyServer) -> None:
    server.ignores_range = True


def without_tags(server: FaultyServer) -> None:
    found = server.find
    server.find = lambda path, body: found(path, body)._replace(headers={})  # type: ignore[method-assign, union-attr]


def with_weak_tags(server: FaultyServer) -> None:
    found = server.find
    server.find = lambda path, body: found(path, body)._replace(headers={"ETag": 'W/"a"'})  # type: ignore[method-assign, union-attr]


@pytest.mark.parametrize("kind", [ignoring_range, without_tags, with_weak_tags])
def test_what_cannot_be_continued_is_begun_again(
    kind: Callable[[FaultyServer], None], web: Place, tmp_path: Path
) -> None:
    kind(web.server)
    web.server.faults["/0.tar"] = ["truncate", "truncate"]
    assert download(web, tmp_path) == CONTENTS
    assert web.server.sent["/0.tar"] == 2 * len(CONTENTS)


def test_a_file_that_came_whole_but_wrong_is_begun_again(web: Place, tmp_path: Path) -> None:
    web.server.faults["/0.tar"] = ["short"]
    assert download(web, tmp_path) == CONTENTS
    assert web.server.sent["/0.tar"] == 1.5 * len(CONTENTS)


def test_an_empty_file_is_downloaded(place: Place, tmp_path: Path) -> None:
    place.file.write_bytes(b"")
    assert download(place, tmp_path) == b""


def test_a_shard_that_came_in_pieces_is_whole_in_the_cache(place: Place, tmp_path: Path) -> None:
    """The cache has the file open while it comes: it must stay the file that it is."""
    access = Remote(attempts=4, timeout_s=10)
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=10**8, remote=access)
    place.server.faults[place.media] = ["truncate", "503", "truncate"]
    descriptor = cache.open(place.url, access.stat(place.url))
    assert os.pread(descriptor, 2 * len(CONTENTS), 0) == CONTENTS
    os.close(descriptor)
