"""Reading tar archives by their headers: where each member lies, without reading what it holds.

The standard library's tarfile costs about ten times as much per member, and reads on where a size is nonsense. Formats:
v7, ustar, GNU (long names, base-256 numbers) and pax (path and size). What a shard has no use for is refused: sparse
files, links, negative or absurd sizes, archives that end before their end or go on after it.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from configs.problems import DataError

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
SPARSE = b"S"
LINKS = (b"1", b"2")
GNU_LONG_NAME, GNU_LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
MAX_NAME_BYTES = 65536
MAX_DIGITS = 20
_ZEROS = bytes(BLOCK)


class Member(NamedTuple):
    """A regular file in an archive.

    Attributes:
        name: Full path as stored.
        offset: Byte offset of its first header block (a long name's header comes before the member's own).
        data_offset: Byte offset of its contents.
        size: Bytes of its contents.
    """

    name: str
    offset: int
    data_offset: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the next header."""
        return self.data_offset + _padded(self.size)


def members(file: BinaryIO, *, length: int, source: str, whole: bool = True) -> Iterator[Member]:
    """All regular files of an archive, or of a run of members cut out of one, in order.

    Args:
        file: Seekable, positioned anywhere.
        length: Bytes that the archive or run has.
        source: What to call it in errors.
        whole: An archive, which ends with blocks of zeros. One without them was cut between two members.

    Raises:
        DataError: If the archive is truncated, damaged or of a kind that is refused.
    """
    position = start = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while position < length:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise DataError(f"{source}: truncated tar, {length} bytes, cut in the header at byte {position}")
        if header == _ZEROS:
            _check_end(file, source, position)
            return
        _check(header, source, position)
        kind = header[156:157]
        size = _pax_size(pax, source, position) if "size" in pax else _number(header[124:136], source, position)
        if size < 0 or position + BLOCK + size > length:
            raise DataError(
                f"{source}: truncated or damaged tar, {length} bytes, a member of {size} bytes begins at {position}"
            )
        data = position + BLOCK
        if kind in (GNU_LONG_NAME, GNU_LONG_LINK, PAX, PAX_GLOBAL):
            if size > MAX_NAME_BYTES:
                raise DataError(f"{source}: an extended header of {size} bytes at byte {position}")
            body = file.read(size)
            if kind == GNU_LONG_NAME:
                long_name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == PAX:
                pax = _pax_records(body, source, position)
            position = data + _padded(size)
            continue
        if kind == SPARSE or any(key.startswith("GNU.sparse") for key in pax):
            raise DataError(f"{source}: sparse member at byte {position}: not supported in a shard")
        if kind in LINKS:
            raise DataError(
                f"{source}: {_name(header)!r} at byte {position} is a link: pack its contents "
                "(tar --dereference --hard-dereference)"
            )
        if kind in REGULAR:
            yield Member(pax.get("path") or long_name or _name(header), start, data, size)
            position = data + _padded(size)
        else:
            position = data  # a folder or device has no contents
        start, long_name, pax = position, None, {}
    if position > start:
        raise DataError(f"{source}: truncated tar, an extended header without its member at byte {start}")
    if whole:
        raise DataError(f"{source}: truncated tar, {length} bytes, its end is missing")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _number(field: bytes, source: str, position: int) -> int:
    if field[0] & 0x80:  # GNU base-256, two's complement
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") - (1 << 95 if field[0] & 0x40 else 0)
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise DataError(f"{source}: not a number in the tar header at byte {position}: {field!r}") from None


def _check(header: bytes, source: str, position: int) -> None:
    stored = _number(header[148:156], source, position)
    if stored != sum(header[:148]) + sum(header[156:]) + 8 * 32:
        raise DataError(f"{source}: not a tar header at byte {position} (wrong checksum)")


def _check_end(file: BinaryIO, source: str, position: int) -> None:
    """After the end there is padding alone. Members there, as of archives joined by `cat`, would be lost in silence."""
    while chunk := file.read(1 << 20):
        if chunk.count(0) < len(chunk):
            raise DataError(f"{source}: the tar ends at byte {position}, but more follows: two archives in one file?")


def _pax_size(pax: dict[str, str], source: str, position: int) -> int:
    if not (pax["size"].isascii() and pax["size"].isdigit() and len(pax["size"]) <= MAX_DIGITS):
        raise DataError(f"{source}: not a size in the pax header at byte {position}: {pax['size']!r}")
    return int(pax["size"])


def _pax_records(body: bytes, source: str, position: int) -> dict[str, str]:
    records = {}
    while body.strip(b"\0"):
        digits, _, _ = body.partition(b" ")
        if not digits.isdigit() or len(digits) > MAX_DIGITS or not 0 < int(digits) <= len(body):
            raise DataError(f"{source}: damaged pax header at byte {position}")
        record, body = body[len(digits) + 1 : int(digits) - 1], body[int(digits) :]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    return records
