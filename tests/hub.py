"""The part of Hugging Face's Hub that HfFileSystem reads data sets by, on loopback, with chosen faults."""

import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.web import Answer, FaultyServer

REPO = "someone/images"
_API, _FILES, _CDN = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/", "/cdn/"
_COMMIT = "0" * 40


class HubServer(FaultyServer):
    """Serves a folder as the main branch of one data set, whose files are LFS's. Faults and counts go without query.

    Source: https://huggingface.co/docs/hub/api (repo info, tree, paths-info, resolve).

    Attributes:
        page: Most entries in one answer of a list.
        wrong_sha256: Claim another checksum than that of the contents.
        gated: Whether it must be asked for on the Hub's web page.
    """

    def __init__(self, folder: Path) -> None:
        self.page = 4
        self.wrong_sha256 = False
        self.gated = False
        super().__init__(folder)

    @staticmethod
    def media(name: str) -> str:
        """The path of a file's contents, to which the Hub redirects."""
        return f"{_CDN}{name}"

    def counted_as(self, path: str) -> str:
        return unquote(urlsplit(path).path)

    def find(self, path: str, body: bytes) -> Answer | None:
        place, query = unquote(urlsplit(path).path), parse_qs(urlsplit(path).query)
        if self.gated and not place.startswith(_API):
            return Answer(b"", {"X-Error-Code": "GatedRepo"}, 403)
        if place in (_API, f"{_API}/revision/main"):
            return self._json({"id": REPO, "sha": _COMMIT, "private": False, "tags": [], "siblings": []})
        if place.startswith(f"{_API}/tree/main"):
            return self._tree(place.removeprefix(f"{_API}/tree/main").strip("/"), query)
        if place == f"{_API}/paths-info/main":
            names = parse_qs(body.decode())["paths"]
            return self._json([self._entry(self.folder / name) for name in names if (self.folder / name).exists()])
        if place.startswith(_API) or place.startswith(f"/datasets/{REPO}/tree"):
            return Answer(b"", {"X-Error-Code": "RevisionNotFound"}, 404)
        if place.startswith(f"{_FILES}main/"):
            return self._redirect(place.removeprefix(f"{_FILES}main/"))
        file = self.folder / place.removeprefix(_CDN)
        if not place.startswith(_CDN) or not file.is_file():
            return Answer(b"", {"X-Error-Code": "RepoNotFound"}, 401)
        return Answer(file.read_bytes(), {"ETag": f'"{self._sha256(file)}"'})

    def _tree(self, name: str, query: dict[str, list[str]]) -> Answer:
        folder = self.folder / name
        if not folder.is_dir():
            return Answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)
        deep = query.get("recursive", ["false"])[-1].lower() == "true"
        paths = sorted(folder.rglob("*") if deep else folder.iterdir())
        first = int(query.get("cursor", ["0"])[-1])
        found = self._json([self._entry(path) for path in paths[first : first + self.page]])
        if first + self.page < len(paths):
            place = f"{_API}/tree/main" + (f"/{quote(name, safe='')}" if name else "")
            following = self.url(f"{place[1:]}?recursive={deep}&cursor={first + self.page}")
            found.headers["Link"] = f'<{following}>; rel="next"'
        return found

    def _entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "1" * 40, "size": 0, "path": name}
        size, sha256 = path.stat().st_size, self._sha256(path)
        blob = hashlib.sha1(path.read_bytes()).hexdigest()
        lfs = {"oid": sha256, "size": size, "pointerSize": 134}
        return {"type": "file", "oid": blob, "size": size, "path": name, "lfs": lfs}

    def _redirect(self, name: str) -> Answer | None:
        file = self.folder / name
        if not file.is_file():
            return Answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)
        headers = {
            "Location": self.url(f"{_CDN[1:]}{quote(name)}"),
            "X-Repo-Commit": _COMMIT,
            "X-Linked-Size": str(file.stat().st_size),
            "X-Linked-ETag": f'"{self._sha256(file)}"',
        }
        return Answer(b"", headers, 302)

    def _sha256(self, file: Path) -> str:
        contents = file.read_bytes()
        return hashlib.sha256(contents[::-1] if self.wrong_sha256 else contents).hexdigest()

    @staticmethod
    def _json(content: object) -> Answer:
        return Answer(json.dumps(content).encode(), {"Content-Type": "application/json"})
