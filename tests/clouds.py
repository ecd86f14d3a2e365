"""Clouds on loopback: servers that speak a provider's API, and the environment that leads its client to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from datamodules.storage import filesystems
from tests.gcs import GcsServer
from tests.hub import REPO, HubServer


@contextmanager
def gs_server(folder: Path) -> Iterator[tuple[GcsServer, str]]:
    """Google Cloud Storage with a folder's folders as buckets, read without credentials; and ``gs://``."""
    server = GcsServer(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url().rstrip("/"))
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("CLOUDSDK_CONFIG", str(folder / "none"))
        patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        filesystems._filesystem_of.cache_clear()
        yield server, "gs://"
    server.close()
    filesystems._filesystem_of.cache_clear()


@contextmanager
def hf_server(folder: Path) -> Iterator[tuple[HubServer, str]]:
    """The Hub with a folder as a data set; and its URL."""
    server = HubServer(folder)
    endpoint = server.url().rstrip("/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", endpoint)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        # What it has read from the environment already.
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        filesystems._filesystem_of.cache_clear()
        yield server, f"hf://datasets/{REPO}/"
    server.close()
    filesystems._filesystem_of.cache_clear()
