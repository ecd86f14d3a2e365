"""What a user may write for shards."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from configs.problems import DataError
from datamodules.indexing.urls import expand, find_shards
from datamodules.storage.locations import Shard, Url
from tests.web import FaultyServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve empty shards, and things that are none."""
    for i in range(12):
        (tmp_path / f"train-{i:03d}.tar").touch()
    for name in ("_info.json", "train-000.tar.idx", ".train-000.tar.1.tmp", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(paths: Sequence[Shard]) -> list[str]:
    return [path.name for path in paths]


def test_braces_name_shards_in_the_order_written(folder: Path) -> None:
    assert names(expand(f"{folder}/train-{{002..004}}.tar")) == ["train-002.tar", "train-003.tar", "train-004.tar"]
    assert names(expand(f"{folder}/train-{{009,001}}.tar")) == ["train-009.tar", "train-001.tar"]


def test_a_glob_names_shards_in_the_order_of_their_names(folder: Path) -> None:
    assert names(expand(f"{folder}/train-00[12].tar")) == ["train-001.tar", "train-002.tar"]
    assert names(expand(f"{folder}/train-*.tar")) == [f"train-{i:03d}.tar" for i in range(12)]
    assert names(expand(f"{folder}/*-{{000,01?}}.tar")) == ["train-000.tar", "train-010.tar", "train-011.tar"]


def test_a_folder_stands_for_its_tars(folder: Path) -> None:
    assert names(expand(str(folder))) == [f"train-{i:03d}.tar" for i in range(12)]


def test_several_are_joined_by_colons_or_given_as_a_list(folder: Path) -> None:
    joined = expand(f"{folder}/train-003.tar::{folder}/train-00{{0..1}}.tar")
    assert names(joined) == ["train-003.tar", "train-000.tar", "train-001.tar"]
    assert expand((f"{folder}/train-003.tar", f"{folder}/train-00{{0..1}}.tar")) == joined


def test_a_list_has_comments_and_paths_relative_to_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = folder / "lists"
    lists.mkdir()
    lines = ["# first half", "../train-00{0..2}.tar", "", f"  {folder}/train-005.tar  ", "../train-01*.tar"]
    (lists / "half.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir("/")
    expected = [f"train-{i:03d}.tar" for i in (0, 1, 2, 5, 10, 11)]
    assert names(expand(str(lists / "half.txt"))) == expected
    monkeypatch.chdir(lists)
    assert names(expand("half.txt")) == expected


def test_relative_paths_home_and_file_urls_are_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert expand("train-000.tar") == [Path("train-000.tar")]
    assert expand("*0.tar") == [Path("train-000.tar"), Path("train-010.tar")]
    assert expand("~/train-000.tar") == [folder / "train-000.tar"]
    assert expand(f"file://{folder}/train-000.tar") == [folder / "train-000.tar"]
    assert expand("file:train-000.tar") == [Path("train-000.tar")]
    (folder / "lists").mkdir()
    (folder / "lists" / "home.txt").write_text(f"~/train-000.tar\nfile://{folder}/train-001.tar\n")
    assert names(expand("lists/home.txt")) == ["train-000.tar", "train-001.tar"]


def test_a_file_whose_name_has_brackets_or_braces_is_itself(folder: Path) -> None:
    for name in ("a[1].tar", "b{1,2}.tar"):
        (folder / name).touch()
        assert names(expand(str(folder / name))) == [name]


def test_the_shards_of_imagenet_as_others_publish_them_are_named_in_one_pattern(tmp_path: Path) -> None:
    for i in range(1024):
        (tmp_path / f"imagenet1k-train-{i:04d}.tar").touch()
    found = expand(f"{tmp_path}/imagenet1k-train-{{0000..1023}}.tar")
    assert found == expand(str(tmp_path))
    assert len(found) == 1024


@pytest.mark.parametrize(
    ("shards", "what"),
    [
        ("{folder}/train-{{010..012}}.tar", r"shard .*/train-012\.tar does not exist"),
        ("{folder}/gone.tar", r"gone\.tar does not exist"),
        ("{folder}/gone.txt", r"gone\.txt does not exist"),
        ("{folder}/val-*.tar", r"val-\*\.tar' match no file"),
        ("{folder}/empty", "match no file"),
        ("{folder}/notes.txt", "match no file"),
        ("{folder}/train-{{000..002}}.tar::{folder}/train-001.tar", r"train-001\.tar come more than once"),
        ("{folder}/train-001.tar::{folder}/empty/../train-001.tar", r"train-001\.tar come more than once"),
        ("{folder}/train-001.tar::", "an empty name among the shards"),
        ("", "an empty name among the shards"),
        ("pipe:touch {folder}/ran", "pipe: would run a command"),
        ("{folder}/piped.txt", "pipe: would run a command"),
        ("ftp://host/a.tar", "is read, not ftp://"),
        ("https://host/*.tar", "HTTP servers list no files"),
        ("s3://bucket/a.tar::s3://bucket/a.tar", "come more than once"),
        ("{folder}/gone.json", r"list of shards .*gone\.json does not exist"),
        ("{folder}/lists/#train", r"list of shards .*_info\.json does not exist"),
        ("{folder}/" + "x" * 5000, r"…: File name too long"),
        ("{folder}/train-{{0..999999999999}}.tar", "more than 1,000,000 names"),
        ("{folder}/train-{{999999999999..0..3}}.tar", "more than 1,000,000 names"),
        ("https://host/{{0..9999}}-{{0..9999}}.tar", "more than 1,000,000 names"),
        ("{folder}/latin.txt", r"list of shards .*latin\.txt: not a text in UTF-8"),
        ("{folder}/wrong.json", r"wrong\.json: shard .*train-099\.tar does not exist"),
    ],
)
def test_what_names_no_shards_is_a_data_error(shards: str, what: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "lists").mkdir()
    (folder / "wrong.json").write_text('{"train-000.tar": 3, "train-099.tar": 3}')
    (folder / "latin.txt").write_bytes(b"train-\xff.tar\n")
    (folder / "piped.txt").write_text(f"pipe:touch {folder}/ran\n")
    with pytest.raises(DataError, match=what):
        expand(shards.format(folder=folder))
    assert not (folder / "ran").exists()


def test_a_list_as_windows_writes_it_is_read(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbftrain-001.tar\r\ntrain-000.tar\r\n")
    assert names(expand(str(folder / "list.txt"))) == ["train-001.tar", "train-000.tar"]


def test_no_shards_at_all_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no shards are named"):
        expand(())


def test_a_list_in_a_list_is_not_followed(folder: Path) -> None:
    (folder / "loop.txt").write_text("loop.txt\n")
    assert names(expand(str(folder / "loop.txt"))) == ["loop.txt"]  # as a shard, which it then proves not to be


def test_a_hundred_thousand_shards_named_twice_are_found_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes hours where each is searched for among all."""
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    with pytest.raises(DataError, match="more than once") as caught:
        expand((f"{tmp_path}/{{00000..50000}}.tar", f"{tmp_path}/{{00000..50000}}.tar"))
    assert len(str(caught.value)) < 1000


# URLs, and lists of shards


INFO = {
    "splits": {
        "train": {"filenames": ["train-000.tar", "train-001.tar"], "shard_lengths": [3, 4], "num_samples": 7},
        "validation": {"filenames": ["train-002.tar"], "shard_lengths": [5], "num_samples": 5},
    }
}


@pytest.mark.parametrize("protocol", ["s3", "gs", "http", "https", "hf"])
def test_urls_with_braces_name_shards_without_asking_a_server(protocol: str) -> None:
    found = expand(f"{protocol}://host/x/train-{{000..002}}.tar::{protocol}://host/y/train-000.tar")
    assert [str(shard) for shard in found] == [
        *(f"{protocol}://host/x/train-{i:03d}.tar" for i in range(3)),
        f"{protocol}://host/y/train-000.tar",
    ]


def test_paths_and_urls_go_together_also_in_a_list(folder: Path) -> None:
    (folder / "both.txt").write_text("train-000.tar\ns3://bucket/{a,b}.tar\n")
    assert expand(str(folder / "both.txt")) == [
        folder / "train-000.tar",
        Url("s3://bucket/a.tar"),
        Url("s3://bucket/b.tar"),
    ]


@pytest.mark.parametrize("form", ["{folder}/_info.json#train", "{folder}/#train"])
def test_a_local_list_names_shards_beside_it_and_their_samples(form: str, folder: Path) -> None:
    (folder / "_info.json").write_text(json.dumps(INFO))
    found = find_shards(form.format(folder=folder))
    assert names(found.shards) == ["train-000.tar", "train-001.tar"]
    assert [found.expected[shard].samples for shard in found.shards] == [3, 4]


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    (folder / "_info.json").write_text(json.dumps(INFO))
    (folder / "sizes.json").write_text('{"train-003.tar": 6}')
    (folder / "list.txt").write_text("# some\ntrain-004.tar\n")
    made = FaultyServer(folder)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("#train", ["train-000.tar", "train-001.tar"]),
        ("_info.json#validation", ["train-002.tar"]),
        ("sizes.json", ["train-003.tar"]),
        ("list.txt", ["train-004.tar"]),
        ("train-005.tar?version=x", ["train-005.tar?version=x"]),
    ],
)
def test_an_http_server_lists_shards_in_files(form: str, expected: list[str], server: FaultyServer) -> None:
    assert [str(shard) for shard in expand(server.url(form))] == [server.url(name) for name in expected]


def test_an_http_folder_with_several_splits_asks_which(server: FaultyServer) -> None:
    with pytest.raises(DataError, match=r"_info\.json: which split is meant: append one of #train, #validation"):
        expand(server.url())


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("/etc/passwd", "is a path of some machine"),
        ("file:///etc/passwd", "not file://"),
        ("~/a.tar", "is a path of some machine"),
        ("pipe:touch ran", "pipe: would run a command"),
        ("../a.tar", r"with \.\. in its path"),
    ],
)
def test_a_remote_list_cannot_name_what_is_on_this_machine(lines: str, what: str, server: FaultyServer) -> None:
    (server.folder / "evil.txt").write_text(lines + "\n")
    with pytest.raises(DataError, match=what):
        expand(server.url("evil.txt"))
    (server.folder / "evil.json").write_text(json.dumps({lines.removesuffix(".tar") + ".tar": 1}))
    with pytest.raises(DataError):
        expand(server.url("evil.json"))


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hidden@host.invalid/{0..9}.tar",
        "s3://hidden@bucket/0.tar",
        "https://host.invalid/0.tar?X-Amz-Signature=hidden&a=b",
        "https://host.invalid/_info.json?token=hidden#train",
        "ftp://me:hidden@host.invalid/0.tar",
    ],
)
def test_a_url_with_a_secret_is_refused_before_anybody_is_asked_and_not_repeated(url: str) -> None:
    for shards in (url, f"a.tar::{url}", [url, "a.tar"]):
        with pytest.raises(DataError, match="URLs without passwords, tokens and signatures") as refused:
            expand(shards)
        assert "hidden" not in str(refused.value)


SIGNED = "https://host.invalid/0.tar?X-Amz-Signature=hidden"
LISTS = {
    "secret.txt": f"train-000.tar\n{SIGNED}\n",
    "sizes.json": json.dumps({SIGNED + "#.tar": 3}),
    "wids.json": json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": [{"url": SIGNED, "nsamples": 3}]}),
    "_info.json": json.dumps({"splits": {"train": {"filenames": ["0.tar?sig=hidden"], "shard_lengths": [3]}}}),
    "braces.txt": "https://host.invalid/0.tar?{sig,signature}=hidden\n",
    "many.txt": "https://me:hidden@host.invalid/{0..9999999}.tar\n",
}


@pytest.mark.parametrize(
    ("name", "remote"),
    [(name, remote) for name in LISTS for remote in (False, True) if remote or name != "_info.json"],  # names of files
)
def test_a_list_of_urls_with_secrets_is_refused_and_they_are_not_repeated(
    name: str, remote: bool, folder: Path, server: FaultyServer
) -> None:
    (folder / name).write_text(LISTS[name])
    with pytest.raises(DataError, match="accepted are URLs without passwords, tokens and signatures") as refused:
        expand(server.url(name) if remote else str(folder / name))
    assert "hidden" not in str(refused.value)
