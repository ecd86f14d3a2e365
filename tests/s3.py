"""A real S3 API on loopback, in a process of its own: moto's server."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest

from tests.ports import free_port

TIMEOUT_S = 120
CODE = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


def environment(endpoint: str) -> dict[str, str]:
    """What makes clients of S3 talk to it."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
        "NO_PROXY": "127.0.0.1",
    }


@dataclass
class S3:
    """The server. Its contents end with it.

    Attributes:
        endpoint: Its address.
    """

    endpoint: str
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def client(self) -> Any:
        """boto3's."""
        return boto3.client("s3", endpoint_url=self.endpoint)

    def start(self, *buckets: str) -> None:
        """Begin to answer, with these empty buckets."""
        command = [sys.executable, "-c", CODE, self.endpoint.rpartition(":")[2]]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.client().list_buckets()
                break
            except Exception:
                assert self._process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        for bucket in buckets:
            self.client().create_bucket(Bucket=bucket)

    def stop(self) -> None:
        """Be away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of all objects, in the order of their last change."""
        found = self.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in sorted(found, key=lambda entry: entry["LastModified"])]


@contextmanager
def s3_server(*buckets: str) -> Iterator[S3]:
    """A server, and the environment that leads to it."""
    server = S3(f"http://127.0.0.1:{free_port()}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server.endpoint).items():
            patch.setenv(name, value)
        try:
            server.start(*buckets)
            yield server
        finally:
            server.stop()
