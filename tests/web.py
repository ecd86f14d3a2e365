"""A real HTTP server on loopback whose faults are chosen, request by request."""

import hashlib
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes:
        faults: For a path, what each of its next GETs meets: a status such as ``503``, ``stall``, ``truncate`` (the
            connection ends in mid-body), ``short`` (fewer bytes, in good order), ``reset``, or ``ok``.
        always: For a path, what all GETs meet that ``faults`` has nothing for.
        requests: How often each method and path was asked for.
        stall_s: How long a stall lasts.
        delay_s: What each GET waits first.
        refuses_head: Answer HEAD by 403, as signed URLs do.
        most_running: Most GETs that were under way at once.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self.stall_s = 30.0
        self.delay_s = 0.0
        self.refuses_head = False
        self.running = 0
        self.most_running = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

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
            self.server.requests["HEAD", self.path] += 1
        if self.server.refuses_head:
            self._refuse(403)
        else:
            self._answer(send=False)

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests["GET", self.path] += 1
            waiting = server.faults[self.path]
            fault = waiting.pop(0) if waiting else server.always.get(self.path, "ok")
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

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, *, send: bool, fault: str = "ok") -> None:
        file = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if not file.is_file():
            self._refuse(404)
            return
        contents = file.read_bytes()
        tag, status, part = hashlib.md5(contents).hexdigest(), 200, None
        if fault == "short":
            contents = contents[: len(contents) // 2]
        elif send and self.headers.get("Range") == "bytes=0-0":
            status, part, contents = 206, f"bytes 0-0/{len(contents)}", contents[:1]
        self.send_response(status)
        if part is not None:
            self.send_header("Content-Range", part)
        self.send_header("Content-Length", str(len(contents)))
        self.send_header("ETag", f'"{tag}"')
        self.end_headers()
        if not send:
            return
        if fault in ("ok", "short"):
            self.wfile.write(contents)
            return
        self.wfile.write(contents[: len(contents) // 2])
        self.wfile.flush()
        if fault == "stall":
            self.server.stopped.wait(self.server.stall_s)
        elif fault == "reset":
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
