"""What servers do, and what is made of it."""

import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.problems import DataError, UnreachableError
from datamodules.storage import failures, filesystems, stats, transfer
from datamodules.storage.locations import Url, parse_url
from datamodules.storage.remote import Remote
from datamodules.storage.stats import Stat
from tests.web import FaultyServer

CONTENTS = os.urandom(300_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENTS)
    made = FaultyServer(folder)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)


def download(server: FaultyServer, tmp_path: Path, *, attempts: int = 4, timeout_s: float = 5.0) -> bytes:
    access = Remote(attempts=attempts, timeout_s=timeout_s)
    url, file = Url(server.url("a.tar")), tmp_path / "file"
    file.touch()
    access.download(url, file, access.stat(url))
    return file.read_bytes()


@pytest.mark.parametrize(
    "faults", [["503"], ["429", "408"], ["truncate"], ["short"], ["reset"], ["500", "reset", "short"]]
)
def test_a_server_that_fails_for_a_while_is_asked_again(
    faults: list[str], server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["/a.tar"] = list(faults)
    with caplog.at_level(logging.WARNING):
        assert download(server, tmp_path) == CONTENTS
    assert server.gets("a.tar") == len(faults) + 1
    assert len(caplog.messages) == len(faults)
    assert all(server.url("a.tar") in message and "again in" in message for message in caplog.messages)


def test_a_download_that_stalls_is_given_up_and_begun_again(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["/a.tar"] = ["stall"]
    begun = time.monotonic()
    assert download(server, tmp_path, timeout_s=0.5) == CONTENTS
    assert time.monotonic() - begun < server.stall_s / 2


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("503", "503"),
        ("truncate", "ClientPayloadError|ContentLengthError"),
        ("short", "150000 bytes came, of 300000"),
        ("reset", "reset|Payload"),
        ("stall", "no byte in 0.3 s, after 150000|[Tt]imeout"),
    ],
)
def test_a_server_that_fails_for_good_is_named_with_attempts_and_last_error(
    fault: str, what: str, server: FaultyServer, tmp_path: Path
) -> None:
    server.always["/a.tar"] = fault
    with pytest.raises(UnreachableError, match=rf"{server.url('a.tar')}: 3 attempts failed, the last with .*({what})"):
        download(server, tmp_path, attempts=3, timeout_s=0.3 if fault == "stall" else 5.0)
    assert server.gets("a.tar") == 3


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_what_asking_again_does_not_help_is_a_data_error_at_once(
    status: str, server: FaultyServer, tmp_path: Path
) -> None:
    server.always["/a.tar"] = status
    with pytest.raises(DataError, match=r"/a\.tar: "):
        download(server, tmp_path)
    assert server.gets("a.tar") == 1


def test_a_file_that_is_not_there_is_a_data_error(server: FaultyServer) -> None:
    with pytest.raises(DataError, match=r"/gone\.tar: .*404"):
        Remote().stat(Url(server.url("gone.tar")))


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9/a\.tar: 2 attempts failed, .*ConnectorError"):
        Remote(attempts=2, timeout_s=5).stat(Url("http://127.0.0.1:9/a.tar"))


def test_a_file_that_changed_is_a_data_error_whether_its_size_did_or_not(server: FaultyServer, tmp_path: Path) -> None:
    access, url, file = Remote(), Url(server.url("a.tar")), tmp_path / "file"
    file.touch()
    old = access.stat(url)
    for contents in (CONTENTS[::-1], CONTENTS[:1000]):
        (server.folder / "a.tar").write_bytes(contents)
        with pytest.raises(DataError, match="has changed since it was indexed"):
            access.download(url, file, old)


def test_a_server_that_refuses_head_is_asked_for_a_byte(server: FaultyServer, tmp_path: Path) -> None:
    server.refuses_head = True
    assert Remote().stat(Url(server.url("a.tar"))).size == len(CONTENTS)
    assert download(server, tmp_path) == CONTENTS


def test_many_files_are_asked_for_at_once(server: FaultyServer) -> None:
    for i in range(40):
        (server.folder / f"{i}.tar").write_bytes(bytes(i))
    urls = [Url(server.url(f"{i}.tar")) for i in range(40)]
    assert [stat.size for stat in Remote().stat_all(urls)] == list(range(40))
    assert all(server.requests["HEAD", f"/{i}.tar"] == 1 for i in range(40))


def test_a_list_beyond_its_bound_is_not_read(server: FaultyServer) -> None:
    with pytest.raises(DataError, match="300000 bytes, more than the 1000"):
        Remote().read(Url(server.url("a.tar")), max_bytes=1000)
    assert server.gets("a.tar") == 0


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_download_that_fails_draws_nothing_from_the_global_generator(
    kind: str, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in the background, while augmentations are drawn from it."""
    file = tmp_path / "file"
    file.touch()
    url = Url(server.url("b/a.tar") if kind == "http" else "s3://b/a.tar")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url().rstrip("/"))
    (server.folder / "b").mkdir()
    (server.folder / "b" / "a.tar").write_bytes(CONTENTS)
    access = Remote(attempts=3, timeout_s=20)
    expected = access.stat(url)
    server.always["/b/a.tar"] = "503"
    state = random.getstate()
    with pytest.raises(UnreachableError, match="3 attempts failed"):
        access.download(url, file, expected)
    assert random.getstate() == state
    assert server.gets("b/a.tar") >= 3


def test_a_full_disk_is_no_servers_fault(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "attempt", full)
    with pytest.raises(OSError, match="No space left"):
        download(server, tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("https://host/train/000.tar?version=a/b", "000.tar", "https://host/train/"),
        ("http://host/a%20b.tar", "a b.tar", "http://host/"),
        ("s3://bucket/train/000.tar", "000.tar", "s3://bucket/train/"),
        ("gcs://bucket/000.tar", "000.tar", "gs://bucket/"),
        ("hf://datasets/timm/imagenet/000.tar", "000.tar", "hf://datasets/timm/imagenet/"),
    ],
)
def test_urls_have_a_name_and_a_folder(text: str, name: str, folder: str) -> None:
    assert (parse_url(text).name, parse_url(text).folder) == (name, folder)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("pipe:cat /etc/passwd", "pipe: would run a command"),
        ("pipe://cat", "pipe: would run a command"),
        ("pipe:hdfs cat /a.tar", "pipe:hdfs …: .* give a path, or one of http://, https://, s3://, gs://, hf://"),
        ("pipe:aws s3 cp 's3://bucket/a.tar' -", "give s3://bucket/a.tar itself$"),
        ("pipe:curl -sL https://host/a.tar?token=secret || true", "give https://host/a.tar itself$"),
        ("ftp://host/a.tar", "is read, not ftp://"),
        ("memory://a.tar", "is read, not memory://"),
        ("s3://bucket/../other/a.tar", r"with \.\. in its path"),
        ("http://host/a/%2e%2e/b.tar", r"with \.\. in its path"),
        ("s3://", "no file or folder is named"),
    ],
)
def test_urls_of_other_kinds_are_refused(text: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        parse_url(text)


@pytest.mark.parametrize("url", ["https://host/a.tar?token=secret", "https://me:secret@host/a.tar"])
def test_a_command_is_not_repeated_for_it_may_hold_a_token(url: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_url(f"pipe:curl -H 'Authorization: Bearer secret' {url}")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_extra_is_named(protocol: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError

    monkeypatch.setattr(filesystems.fsspec, "filesystem", absent)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    filesystems._filesystem_of.cache_clear()
    with pytest.raises(DataError, match=rf"{protocol}:// cannot be read here: pip install 'effnet\[{extra}\]'"):
        Remote().stat(Url(f"{protocol}://bucket/a.tar"))


def test_tags_are_those_of_any_server() -> None:
    url = Url("s3://bucket/a.tar")
    for info in ({"ETag": '"abc"'}, {"etag": "abc"}, {"ETag": 'W/"abc"'}, {"md5Hash": "abc"}, {"Last-Modified": "abc"}):
        assert stats.stat_of(url, {"size": 3, **info}) == Stat(3, "abc")
    assert stats.stat_of(url, {"size": 3}) == Stat(3, "")
    with pytest.raises(DataError, match="does not say how large"):
        stats.stat_of(url, {"size": None})
