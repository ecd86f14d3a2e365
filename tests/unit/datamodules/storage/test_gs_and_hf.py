"""Google Cloud Storage and Hugging Face's Hub, as servers on loopback play them."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from configs.problems import DataError, UnreachableError
from datamodules.storage import failures, filesystems
from datamodules.storage.locations import Url
from datamodules.storage.remote import Remote
from tests.clouds import gs_server, hf_server
from tests.hub import REPO

CONTENTS = os.urandom(300_000)


class Place(NamedTuple):
    server: Any
    url: str
    media: str


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(params=["gs", "hf"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A server with a folder of ten files of 300,000 bytes each, and one more in a folder below."""
    folder = tmp_path / "served" / ("bucket" if request.param == "gs" else "")
    (folder / "train" / "more").mkdir(parents=True)
    for name in (*(f"train/{i}.tar" for i in range(10)), "train/more/deep.tar"):
        (folder / name).write_bytes(CONTENTS)
    (folder / "train" / "notes.md").write_text("some words")
    with (gs_server if request.param == "gs" else hf_server)(tmp_path / "served") as (server, root):
        media = "/download/storage/v1/b/bucket/o/" if request.param == "gs" else "/cdn/"
        yield Place(server, root + ("bucket/" if request.param == "gs" else ""), media)


def download(place: Place, tmp_path: Path, *, attempts: int = 4, timeout_s: float = 10.0) -> bytes:
    access, url, file = (
        Remote(attempts=attempts, timeout_s=timeout_s),
        Url(f"{place.url}train/3.tar"),
        tmp_path / "file",
    )
    file.touch()
    access.download(url, file, access.stat(url))
    return file.read_bytes()


def test_a_file_is_downloaded_whole(place: Place, tmp_path: Path) -> None:
    assert download(place, tmp_path) == CONTENTS


def test_folders_are_listed_beyond_the_first_page(place: Place) -> None:
    urls = [Url(f"{place.url}train/{i}.tar") for i in range(10)]
    assert Remote().tars(Url(f"{place.url}train/")) == urls
    assert Remote().glob(Url(f"{place.url}train/[1-3].tar")) == urls[1:4]


def test_many_files_are_known_by_few_requests_and_as_each_alone(place: Place) -> None:
    urls = [Url(f"{place.url}train/{i}.tar") for i in range(10)]
    place.server.requests.clear()
    found = Remote().stat_all(urls)
    assert place.server.requests.total() <= 6
    assert found == [Remote().stat(url) for url in urls]
    assert {stat.size for stat in found} == {len(CONTENTS)}
    assert all(stat.tag for stat in found)


@pytest.mark.parametrize("faults", [["503"], ["503", "500"], ["truncate"], ["reset"], ["429"]])
def test_a_server_that_fails_for_a_while_is_asked_again(faults: list[str], place: Place, tmp_path: Path) -> None:
    place.server.faults[f"{place.media}train/3.tar"] = list(faults)
    assert download(place, tmp_path) == CONTENTS
    assert place.server.faults[f"{place.media}train/3.tar"] == []


def test_a_server_that_fails_for_good_is_unreachable(place: Place, tmp_path: Path) -> None:
    place.server.always[f"{place.media}train/3.tar"] = "503"
    state = random.getstate()
    with pytest.raises(UnreachableError, match=r"train/3\.tar: 2 attempts failed, the last with .*503"):
        download(place, tmp_path, attempts=2)
    assert random.getstate() == state  # augmentations are drawn from it meanwhile


@pytest.mark.parametrize("what", ["stat", "tars", "download"])
def test_a_server_that_stalls_is_asked_again(what: str, place: Place, tmp_path: Path) -> None:
    hub = f"/api/datasets/{REPO}"
    describing = ["/storage/v1/b/bucket/o/train/3.tar", f"{hub}/paths-info/main"]
    listing = ["/storage/v1/b/bucket/o", f"{hub}/tree/main/train"]
    place.server.stall_s = 500.0
    for path in {"stat": describing, "tars": listing, "download": [describing[0], listing[1]]}[what]:
        place.server.faults[path] = ["stall"]
    access, url = Remote(attempts=4, timeout_s=3.0), Url(f"{place.url}train/3.tar")
    if what == "stat":
        assert access.stat(url).size == len(CONTENTS)
    elif what == "tars":
        assert len(access.tars(Url(f"{place.url}train/"))) == 10
    else:
        assert download(place, tmp_path, timeout_s=3.0) == CONTENTS
    assert place.server.running >= 1  # it stalls still


def test_contents_that_do_not_have_the_servers_checksum_are_refused(place: Place, tmp_path: Path) -> None:
    for kind in ("md5", "sha256"):
        setattr(place.server, f"wrong_{kind}", True)
    with pytest.raises(UnreachableError, match=r"train/3\.tar: 2 attempts failed, the last with .*(md5|sha256) is "):
        download(place, tmp_path, attempts=2)


@pytest.mark.parametrize("size", [len(CONTENTS), 1000])
def test_a_file_that_changed_is_a_data_error_whether_its_size_did_or_not(
    size: int, place: Place, tmp_path: Path
) -> None:
    access, url, file = Remote(attempts=2), Url(f"{place.url}train/3.tar"), tmp_path / "file"
    file.touch()
    [old] = access.stat_all([url])
    [path] = place.server.folder.rglob("3.tar")
    path.write_bytes(CONTENTS[::-1][:size])
    with pytest.raises(DataError, match="has changed since it was indexed"):
        access.download(url, file, old)
    assert access.stat_all([url]) != [old]


@pytest.mark.parametrize("name", ["train/gone.tar", "gone/0.tar"])
def test_a_file_that_is_not_there_is_one_clear_error(name: str, place: Place) -> None:
    with pytest.raises(DataError, match=name):
        Remote().stat(Url(f"{place.url}{name}"))
    with pytest.raises(DataError, match="gone"):
        Remote().tars(Url(f"{place.url}gone/"))


def test_a_bucket_that_is_not_there_is_a_data_error(place: Place) -> None:
    gone = place.url.replace("bucket", "nothing").replace("someone", "nobody")
    with pytest.raises(DataError, match=r"nothing|nobody"):
        Remote(attempts=2).stat(Url(f"{gone}train/0.tar"))


@pytest.mark.parametrize("status", ["401", "403"])
def test_what_is_not_allowed_is_a_data_error_at_once(status: str, place: Place, tmp_path: Path) -> None:
    place.server.always[f"{place.media}train/3.tar"] = status
    with pytest.raises(DataError, match=r"train/3\.tar: "):
        download(place, tmp_path)
    assert place.server.requests["GET", f"{place.media}train/3.tar"] == 1


def test_a_server_that_is_away_is_unreachable(place: Place) -> None:
    place.server.close()
    filesystems._filesystem_of.cache_clear()
    with pytest.raises(UnreachableError, match="2 attempts failed, the last with"):
        Remote(attempts=2, timeout_s=5).stat(Url(f"{place.url}train/0.tar"))


def test_a_data_set_that_is_gated_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(CONTENTS)
    with hf_server(tmp_path) as (server, root):
        server.gated = True
        (tmp_path / "file").touch()
        access, url = Remote(attempts=2), Url(f"{root}0.tar")
        with pytest.raises(DataError, match=r"0\.tar: GatedRepoError"):
            access.download(url, tmp_path / "file", access.stat(url))
