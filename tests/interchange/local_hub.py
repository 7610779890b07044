"""The fixture `hub`: a small hub on this machine, that the hub's library asks instead of the real one."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from interchange.hub_server import Hub

from saelab.runs import published


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of one test, with a cache of its own; the hub's library asks it and nobody else."""
    from huggingface_hub import constants, file_download

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(published, "cache_home", lambda: tmp_path / "cache")  # which compiled kernels stay out of
    monkeypatch.delenv("HF_TOKEN", raising=False)
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,  # uploads by its own protocol, which needs more than a few routes
        "HF_HUB_DISABLE_TELEMETRY": True,
        "DOWNLOAD_CHUNK_SIZE": 100,  # what is written at a time, and so kept of a broken download
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between tries of a broken download
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
