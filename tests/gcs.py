"""The part of Google Cloud Storage's JSON API that gcsfs reads by, on loopback, with chosen faults."""

import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.web import Answer, FaultyServer

_API, _MEDIA = "/storage/v1/b/", "/download/storage/v1/b/"


class GcsServer(FaultyServer):
    """Serves a folder of buckets. Faults and counts go by paths without query, such as those of ``media``.

    Source: https://docs.cloud.google.com/storage/docs/json_api/v1 (objects: get, list).

    Attributes:
        page: Most objects in one answer of a list.
        wrong_md5: Claim another checksum than that of the contents.
    """

    def __init__(self, folder: Path) -> None:
        self.page = 4
        self.wrong_md5 = False
        super().__init__(folder)

    @staticmethod
    def media(bucket: str, name: str) -> str:
        """The path of an object's contents."""
        return f"{_MEDIA}{bucket}/o/{name}"

    def counted_as(self, path: str) -> str:
        return unquote(urlsplit(path).path)

    def find(self, path: str, body: bytes) -> Answer | None:
        query = {name: values[-1] for name, values in parse_qs(urlsplit(path).query).items()}
        place = urlsplit(path).path
        bucket, kind, name = (*place.removeprefix(_MEDIA).removeprefix(_API).split("/", 2), "", "")[:3]
        if not (self.folder / bucket).is_dir():
            return None
        if kind == "o" and not name:
            return self._json(self._list(bucket, query))
        file = self.folder / bucket / unquote(name)
        if not kind or not file.is_file():
            return None if kind else self._json({"kind": "storage#bucket", "name": bucket})
        described = self._object(bucket, file)
        if query.get("generation", described["generation"]) != described["generation"]:
            return None
        if place.startswith(_MEDIA) and query.get("alt") == "media":
            return Answer(file.read_bytes(), {"ETag": f'"{described["etag"]}"'})
        return self._json(described)

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, object]:
        root, prefix = self.folder / bucket, query.get("prefix", "")
        files = sorted(path for path in root.rglob("*") if path.is_file())
        inside = [file for file in files if file.relative_to(root).as_posix().startswith(prefix)]
        rests = {file: file.relative_to(root).as_posix()[len(prefix) :] for file in inside}
        folders = sorted({f"{prefix}{rest.split('/')[0]}/" for rest in rests.values() if "/" in rest})
        direct = [file for file in inside if "delimiter" not in query or "/" not in rests[file]]
        first = int(query.get("pageToken", 0))
        last = first + min(int(query.get("maxResults", self.page)), self.page)
        found: dict[str, object] = {"kind": "storage#objects"}
        found["items"] = [self._object(bucket, file) for file in direct[first:last]]
        if "delimiter" in query and first == 0:
            found["prefixes"] = folders
        return found | ({"nextPageToken": str(last)} if last < len(direct) else {})

    def _object(self, bucket: str, file: Path) -> dict[str, str]:
        contents, changed = file.read_bytes(), file.stat().st_mtime_ns
        digest = hashlib.md5(contents[::-1] if self.wrong_md5 else contents).digest()
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": file.relative_to(self.folder / bucket).as_posix(),
            "size": str(len(contents)),
            "generation": str(changed // 1000),
            "metageneration": "1",
            "md5Hash": base64.b64encode(digest).decode(),
            "etag": base64.b64encode(str(changed).encode()).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    @staticmethod
    def _json(content: object) -> Answer:
        return Answer(json.dumps(content).encode(), {"Content-Type": "application/json"})
