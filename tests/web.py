"""A real HTTP server on loopback whose faults are chosen, request by request."""

import hashlib
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
    """What a server has under a path."""

    contents: bytes
    headers: dict[str, str]
    status: int = 200


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a folder, or parts of them that start at a byte; a kind of its own overrides ``find``.

    Attributes:
        faults: For a path, what each of its next GETs meets: a status such as ``503``, ``stall``, ``truncate`` (the
            connection ends in mid-body), ``short`` (fewer bytes, in good order), ``reset``, or ``ok``.
        always: For a path, what all GETs meet that ``faults`` has nothing for.
        requests: How often each method and path was asked for.
        sent: Bytes of contents that were sent of each path.
        stall_s: How long a stall lasts.
        delay_s: What each GET waits first.
        refuses_head: Answer HEAD by 403, as signed URLs do.
        ignores_range: Answer with the whole of a file, whatever part is asked for.
        most_running: Most GETs that were under way at once.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[str] = Counter()
        self.stall_s = 30.0
        self.delay_s = 0.0
        self.refuses_head = False
        self.ignores_range = False
        self.running = 0
        self.most_running = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def find(self, path: str, body: bytes) -> Answer | None:
        """What there is at a path, query and all; None if nothing is."""
        file = self.folder / path.lstrip("/").partition("?")[0]
        if not file.is_file():
            return None
        contents = file.read_bytes()
        return Answer(contents, {"ETag": f'"{hashlib.md5(contents).hexdigest()}"'})

    def counted_as(self, path: str) -> str:
        """By what name ``faults``, ``always``, ``requests`` and ``sent`` know a path."""
        return path

    def gets(self, name: str) -> int:
        return self.requests["GET", f"/{name}"]

    def close(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        with self.server.lock:
            self.server.requests["HEAD", self.server.counted_as(self.path)] += 1
        if self.server.refuses_head:
            self._refuse(403)
        else:
            self._answer(send=False)

    def do_GET(self) -> None:
        server, path = self.server, self.server.counted_as(self.path)
        with server.lock:
            server.requests[self.command, path] += 1
            waiting = server.faults[path]
            fault = waiting.pop(0) if waiting else server.always.get(path, "ok")
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            server.stopped.wait(server.delay_s)
            if fault.isdigit():
                self._refuse(int(fault))
            else:
                self._answer(send=True, fault=fault)
        finally:
            with server.lock:
                server.running -= 1

    def do_POST(self) -> None:
        self.do_GET()

    def _refuse(self, status: int) -> None:
        self._body()
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        del self.headers["Content-Length"]
        return body

    def _answer(self, *, send: bool, fault: str = "ok") -> None:
        found = self.server.find(self.path, self._body())
        if found is None:
            self._refuse(404)
            return
        contents, headers, status = found.contents, found.headers, found.status
        if fault == "short":
            contents = contents[: len(contents) // 2]
        first, last = self._range(len(contents), headers.get("ETag", ""))
        if send and status == 200 and (first, last) != (0, len(contents) - 1) and not self.server.ignores_range:
            if first >= len(contents):
                self._refuse(416)
                return
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(contents)}"}
            status, contents = 206, contents[first : last + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        if not send:
            return
        if fault in ("ok", "short"):
            self._send(contents)
            return
        self._send(contents[: len(contents) // 2])
        self.wfile.flush()
        if fault == "stall":
            self.server.stopped.wait(self.server.stall_s)
        elif fault == "reset":
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _range(self, size: int, tag: str) -> tuple[int, int]:
        """First and last byte that are asked for."""
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or self.headers.get("If-Range", tag) != tag:
            return 0, size - 1
        first, _, last = asked.partition("-")
        return int(first), min(int(last or size), size - 1)

    def _send(self, contents: bytes) -> None:
        with self.server.lock:
            self.server.sent[self.server.counted_as(self.path)] += len(contents)
        self.wfile.write(contents)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
