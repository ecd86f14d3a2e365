"""Reading headers: the same members as tarfile finds in whole archives, and a DataError for any other."""

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.problems import DataError
from datamodules.indexing.tar import Member, members
from tests.unit.datamodules.archives import BLOCK, END, gnu_tar, header, run_gnu_tar, tar_bytes

properties = settings(max_examples=100, deadline=None, database=None, derandomize=True)
needs_gnu_tar = pytest.mark.skipif(gnu_tar is None, reason="GNU tar is not installed")

LONG = "n01440764_" + "x" * 120 + ".JPEG"
DEEP = "/".join(["a" * 40] * 5) + "/img.jpg"


def read(archive: bytes, *, whole: bool = True) -> list[Member]:
    return list(members(io.BytesIO(archive), length=len(archive), source="a.tar", whole=whole))


def by_tarfile(archive: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return [Member(m.name, m.offset, m.offset_data, m.size) for m in found if m.isreg()]


def normalised(found: list[Member]) -> list[Member]:
    return [member._replace(name=member.name.removeprefix("./")) for member in found]


names = st.from_regex(r"\A(\./)?([a-z0-9_]{1,60}/){0,4}[a-z0-9_]{1,150}\.(jpg|JPEG|cls)\Z") | st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=120
)


@properties
@given(st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=5), st.sampled_from(["GNU", "PAX"]))
def test_members_are_those_that_tarfile_finds(files: list[tuple[str, bytes]], kind: str) -> None:
    archive = tar_bytes(files, getattr(tarfile, f"{kind}_FORMAT"))
    found = read(archive)
    assert found == by_tarfile(archive)
    assert [archive[m.data_offset : m.data_offset + m.size] for m in found] == [contents for _, contents in files]


@needs_gnu_tar
@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar_of_nested_folders_is_read_in_every_format(tar_format: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    files = {"train/n01/img.JPEG": b"j" * 700, "train/n01/img.cls": b"12\n", "train/n02/empty.txt": b""}
    if tar_format != "v7":
        files[DEEP] = b"deep"
    if tar_format in ("gnu", "oldgnu", "posix"):
        files |= {LONG: b"long", "Zürich/größe.jpg": b"u"}
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    archive = run_gnu_tar(folder, tmp_path / "out.tar", f"--format={tar_format}", ".").read_bytes()
    found = read(archive)
    assert {m.name.removeprefix("./"): archive[m.data_offset : m.data_offset + m.size] for m in found} == files
    assert normalised(found) == normalised(by_tarfile(archive))


@needs_gnu_tar
def test_a_name_of_100_bytes_fills_its_field(tmp_path: Path) -> None:
    name = "n" * 96 + ".jpg"
    (tmp_path / name).write_bytes(b"x")
    for tar_format in ("ustar", "gnu", "v7"):
        archive = run_gnu_tar(tmp_path, tmp_path / f"{tar_format}.tar", f"--format={tar_format}", name).read_bytes()
        assert [member.name for member in read(archive)] == [name]


def test_a_run_cut_out_of_an_archive_is_read_with_its_long_names() -> None:
    archive = tar_bytes([("first.jpg", b"1"), (LONG, b"2" * 600), ("last.jpg", b"3")], tarfile.GNU_FORMAT)
    _, middle, _ = read(archive)
    assert archive[middle.offset + 156 : middle.offset + 157] == b"L"
    [found] = read(archive[middle.offset : middle.end], whole=False)
    assert (found.name, found.offset, found.size) == (LONG, 0, 600)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_cut_anywhere_before_its_end_is_truncated(tar_format: int) -> None:
    long = [] if tar_format == tarfile.USTAR_FORMAT else [(LONG, b"l" * 520)]
    archive = tar_bytes([("a.jpg", b"j" * 700), *long, ("a.cls", b"1")], tar_format)
    end = read(archive)[-1].end
    for length in sorted({*range(0, end + BLOCK, 37), *range(0, end, BLOCK), *range(511, end, BLOCK)}):
        with pytest.raises(DataError, match=r"a\.tar: (truncated|.*extended header)"):
            read(archive[:length])
    for length in range(end + BLOCK, len(archive), BLOCK):
        assert read(archive[:length]) == read(archive)  # padding is missing, contents are not


def test_two_archives_in_one_file_are_refused_for_the_second_would_be_lost() -> None:
    one, two = tar_bytes([("a.jpg", b"1")]), tar_bytes([("b.jpg", b"2")])
    with pytest.raises(DataError, match=r"ends at byte 1024, but more follows"):
        read(one + two)


def test_a_gap_of_zeros_in_the_middle_is_not_the_end() -> None:
    archive = tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")])
    with pytest.raises(DataError, match="more follows"):
        read(archive[:1024] + bytes(1024) + archive[2048:])


@properties
@given(st.data())
def test_a_flipped_bit_outside_the_contents_is_noticed_or_changes_nothing(data: st.DataObject) -> None:
    archive = bytearray(tar_bytes([("train/a.jpg", b"j" * 700), ("train/a.cls", b"1")]))
    whole = read(bytes(archive))
    in_contents = [range(member.data_offset, member.end) for member in whole]
    places = [place for place in range(whole[-1].end + 2 * BLOCK) if not any(place in part for part in in_contents)]
    archive[data.draw(st.sampled_from(places))] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(DataError):
        assert read(bytes(archive)) == whole


@properties
@given(st.binary(min_size=1, max_size=3000))
def test_what_is_no_tar_is_a_data_error(contents: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.tar"):
        read(contents + b"x" * BLOCK)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_is_refused(mode: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size = 5000
        archive.addfile(member, io.BytesIO(bytes(range(250)) * 20))
    with pytest.raises(DataError, match=r"a\.tar"):
        read(buffer.getvalue())


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (b"\xff" * 11 + b"\xfb", "a member of -5 bytes"),
        (b"-0000000005\0", "a member of -5 bytes"),
        (b"77777777777\0", "a member of 8589934591 bytes"),
        (b"\x80" + b"\0" * 3 + (2**60).to_bytes(8, "big"), f"a member of {2**60} bytes"),
        (b"0000000000x\0", "not a number"),
    ],
)
def test_a_negative_or_absurd_size_is_refused(size: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        read(header(size=size) + b"12345".ljust(BLOCK, b"\0") + END)


def test_a_size_in_base_256_is_read() -> None:
    archive = header(size=b"\x80" + (5).to_bytes(11, "big")) + b"12345".ljust(BLOCK, b"\0") + END
    assert read(archive) == [Member("img.jpg", 0, BLOCK, 5)] == by_tarfile(archive)


def pax(*records: tuple[str, str]) -> bytes:
    body = b""
    for key, value in records:
        text = f" {key}={value}\n".encode()
        length = len(text) + 1
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        body += str(length).encode() + text
    return header("PaxHeader", size=f"{len(body):011o}\0".encode(), kind=b"x") + body.ljust(
        -(-len(body) // BLOCK) * BLOCK, b"\0"
    )


def test_pax_gives_path_and_size() -> None:
    archive = pax(("path", "n/" + LONG), ("size", "5")) + header(size=b"00000000000\0") + b"12345".ljust(BLOCK, b"\0")
    [found] = read(archive + END)
    assert (found.name, found.size, found.offset) == ("n/" + LONG, 5, 0)
    assert [found] == by_tarfile(archive + END)


@pytest.mark.parametrize("size", ["abc", "-5", "1_0", "", "9" * 5000, "²"])
def test_a_pax_size_that_is_no_number_is_a_data_error(size: str) -> None:
    with pytest.raises(DataError, match="not a size in the pax header"):
        read(pax(("size", size)) + header() + b"12345".ljust(BLOCK, b"\0") + END)


@pytest.mark.parametrize("body", [b"garbage", b"0 a=b\n", b"99 path=x\n", b"9" * 5000, b" path=x\n"])
def test_a_damaged_pax_header_is_a_data_error(body: bytes) -> None:
    block = header("PaxHeader", size=f"{len(body):011o}\0".encode(), kind=b"x")
    with pytest.raises(DataError, match="damaged pax header"):
        read(block + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0") + header() + END + END)


def test_a_name_of_a_megabyte_is_refused() -> None:
    size = 1 << 20
    archive = header("././@LongLink", size=f"{size:011o}\0".encode(), kind=b"L") + b"n" * size + header() + END
    with pytest.raises(DataError, match="an extended header of 1048576 bytes"):
        read(archive)


def test_an_extended_header_without_its_member_is_truncated() -> None:
    with pytest.raises(DataError, match=r"truncated tar, an extended header|end is missing"):
        read(pax(("path", "x.jpg")))


@needs_gnu_tar
@pytest.mark.parametrize("tar_format", ["gnu", "posix"])
def test_sparse_files_are_refused(tar_format: str, tmp_path: Path) -> None:
    with (tmp_path / "img.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    archive = run_gnu_tar(tmp_path, tmp_path / "out.tar", f"--format={tar_format}", "--sparse", "img.jpg").read_bytes()
    with pytest.raises(DataError, match="sparse"):
        read(archive)


@needs_gnu_tar
@pytest.mark.parametrize("hard", [True, False])
def test_links_are_refused_for_their_sample_would_be_lost(hard: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    link = tmp_path / "b.jpg"
    link.hardlink_to(tmp_path / "a.jpg") if hard else link.symlink_to("a.jpg")
    with pytest.raises(DataError, match=r"'b\.jpg' at byte 1024 is a link.*--dereference --hard-dereference"):
        read(run_gnu_tar(tmp_path, tmp_path / "out.tar", "a.jpg", "b.jpg").read_bytes())
    advised = ("--dereference", "--hard-dereference", "a.jpg", "b.jpg")
    found = read(run_gnu_tar(tmp_path, tmp_path / "out.tar", *advised).read_bytes())
    assert [member.name for member in found] == ["a.jpg", "b.jpg"]


def test_folders_and_devices_are_passed_over() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("train", tarfile.DIRTYPE), ("pipe", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type = kind
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("train/a.jpg"))
    assert read(buffer.getvalue()) == [Member("train/a.jpg", 1024, 1536, 0)]
