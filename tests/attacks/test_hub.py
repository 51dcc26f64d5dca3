"""Downloads from a hub: what the disk refuses is not called a missing network, and what is there is checked."""

from __future__ import annotations

import http.server
import resource
import subprocess
import threading
from contextlib import contextmanager

import pytest
import torch
from huggingface_hub.utils import _http

from terramind_plugin.builders import build_backbone
from terramind_plugin.errors import WeightsError, WeightsNotFoundError
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.model.weights import fetch_published
from tests.hub import cached_file

TINY = VARIANTS["terramind_v1_tiny"]
SIZE = 3_000_000


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does for a plain file of zeros."""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        self.send_header("ETag", '"' + "ab" * 20 + '"')
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(bytes(SIZE))

    def log_message(self, *_):
        pass


def set_address(monkeypatch, address):
    """Send the hub's client elsewhere; before its version 1 it holds a second name of the template."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def forget_sessions():
    """Close what huggingface_hub before 1.0 keeps: a session of offline mode, which refuses all requests."""
    reset = getattr(_http, "reset_sessions", None)
    if reset is not None:
        reset()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Serve a hub on this machine, with an empty cache, and return the cache's folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    forget_sessions()
    set_address(monkeypatch, address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    forget_sessions()
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def largest_file(size):
    """Let this process write files up to a size in bytes only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def assert_about_the_disk(error, cache, reason):
    message = str(error.value)
    assert not isinstance(error.value, WeightsNotFoundError)
    assert f"cannot be stored in {cache}: {reason}" in message
    assert "HF_HOME" in message
    assert "could not be downloaded" not in message


def test_a_download_arrives_and_is_checked(hub):
    path = fetch_published(TINY)
    assert path.stat().st_size == SIZE
    with pytest.raises(WeightsError, match=r"TerraMind_v1_tiny\.pt cannot be read as a checkpoint"):
        build_backbone(TINY.name, ["S1GRD"], pretrained=True)


def test_a_file_that_may_not_grow(hub):
    with largest_file(1_000_000), pytest.raises(WeightsError) as error:
        fetch_published(TINY)
    assert_about_the_disk(error, hub, "File too large")


def test_a_file_in_place_of_the_cache(hub):
    hub.write_text("")
    with pytest.raises(WeightsError) as error:
        fetch_published(TINY)
    assert_about_the_disk(error, hub, "")


def test_a_full_disk(hub):
    hub.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(hub)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        with pytest.raises(WeightsError) as error:
            fetch_published(TINY)
        assert_about_the_disk(error, hub, "No space left on device")
    finally:
        subprocess.run(["umount", str(hub)], check=True)


@pytest.mark.slow  # the hub's client waits and tries again
def test_no_network(hub, monkeypatch):
    set_address(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(WeightsNotFoundError, match="could not be downloaded"):
        fetch_published(TINY)


def test_nan_in_the_cache(monkeypatch, tmp_path):
    weights = build_backbone(TINY.name, ["S1GRD"]).state_dict()
    weights["encoder.3.norm1.weight"][:7] = torch.nan
    torch.save(weights, cached_file(tmp_path, TINY.hub_repo, TINY.hub_file))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"7 of 192 values of encoder\.3\.norm1\.weight are NaN or infinite"):
        build_backbone(TINY.name, ["S1GRD"], pretrained=True)
