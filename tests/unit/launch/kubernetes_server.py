"""An API server on loopback that speaks the few paths used, and plays the controllers: jobs get pods, pods get logs."""

import json
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "a-token-of-the-kubeconfig"


class Cluster:
    """Its objects by path, logs by pod, and each request that came."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[bytes]] = {}
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None

    def add_pod(self, job_set: str, name: str, status: dict[str, Any], *, node: str = "", log: bytes = b"") -> None:
        labels = {"jobset.sigs.k8s.io/jobset-name": job_set}
        pod = {"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": node}, "status": status}
        self.objects[f"/api/v1/namespaces/default/pods/{name}"] = pod
        self.logs[name] = log.splitlines(keepends=True)

    def only(self, plural: str) -> dict[str, Any]:
        (found,) = (each for path, each in self.objects.items() if f"/{plural}/" in path)
        return found


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, reason: str, message: str) -> None:
        content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}
        self._answer(status, {**content, "message": message, "metadata": {}})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self) -> None:
        cluster: Cluster = self.server.cluster
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: each[0] for key, each in parse_qs(url.query).items()}
        body = self._body()
        cluster.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "Unauthorized", "Unauthorized")
        if cluster.refusal is not None:
            return self._fail(cluster.refusal[0], "Forbidden", cluster.refusal[1])
        if self.command == "POST":
            made = json.loads(body)
            place = f"{path}/{made['metadata']['name']}"
            if place in cluster.objects:
                return self._fail(409, "AlreadyExists", f"{place} already exists")
            made["metadata"]["uid"] = str(uuid.uuid4())
            cluster.objects[place] = made
            return self._answer(201, made)
        if path.endswith("/log"):
            return self._answer(200, b"".join(cluster.logs[path.split("/")[-2]]))
        if path.endswith("/pods"):
            key, _, value = query["labelSelector"].partition("=")
            items = [
                each for place, each in cluster.objects.items()
                if place.startswith(f"{path}/") and each["metadata"]["labels"].get(key) == value
            ]  # fmt: skip
            return self._answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
        if path not in cluster.objects:
            return self._fail(404, "NotFound", f"{path} not found")
        if self.command == "DELETE":
            return self._answer(200, cluster.objects.pop(path))
        return self._answer(200, cluster.objects[path])

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1, signed by itself: kubectl sends no token without TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(pem, *plain))
    (folder / "server.crt").write_bytes(certificate.public_bytes(pem))
    return folder / "server.crt", folder / "server.key"


@contextmanager
def api_server(kubeconfig: Path) -> Iterator[Cluster]:
    """Serve, and write the kubeconfig that leads there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    certificate, key = write_certificate(kubeconfig.parent)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    cluster = Cluster()
    server.cluster = cluster  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = {"server": f"https://127.0.0.1:{server.server_port}", "certificate-authority": str(certificate)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": where}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
    }
    kubeconfig.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
