"""A model is found where it is named: a directory, a file, the cache, the hub, or the shapes that ship."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tieryard.errors import UserError
from tieryard.planning import chosen, find_model, known_configs

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
CONFIG = known_configs()[LLAMA_8B]
TINY = {**CONFIG, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no hub but the one a test starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = taken.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hub"


class Hub:
    """Answers for paths that it was given, and keeps what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def has(self, path: str, body: Any, *, status: int = 200, **headers: str) -> None:
        found = {name.replace("_", "-"): value for name, value in headers.items()}
        self.files[path] = (status, found, json.dumps(body).encode())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    known = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.asked.append((self.path, self.headers["Authorization"]))
            missing = (404, {"x-error-code": "EntryNotFound"}, b"")
            status, headers, body = known.files.get(self.path, missing)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


def safetensors(path: Path, tensors: dict[str, tuple[str, int]]) -> None:
    """A file with a header for tensors of so many bytes; the bytes themselves are not read."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [end, end + size]}  # type: ignore[assignment]
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(TINY))
    return made


def test_a_directory_without_weights_is_computed(directory: Path) -> None:
    found = find_model(str(directory))
    assert found.file_bytes is None
    assert found.weight_bytes == found.shape.weight_bytes
    assert found.source.endswith("config.json")
    assert find_model(str(directory / "config.json")).shape.layers == 2


def test_weights_are_counted_in_the_files(directory: Path) -> None:
    safetensors(directory / "model.safetensors", {"a": ("BF16", 1000), "b": ("F32", 4000)})
    safetensors(directory / "consolidated.safetensors", {"a": ("BF16", 1000)})
    assert find_model(str(directory)).weight_bytes == 1000 + 4000 // 2
    assert find_model(str(directory)).quantized(chosen("awq")).file_bytes is None


def test_weights_are_counted_in_the_shards_that_an_index_names(directory: Path) -> None:
    for shard in ("one", "two", "stray"):
        safetensors(directory / f"{shard}.safetensors", {"a": ("BF16", 500)})
    index = {"metadata": {"total_size": 7}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_model(str(directory)).weight_bytes == 1000
    (directory / "two.safetensors").unlink()
    assert find_model(str(directory)).weight_bytes == 7


def test_a_file_that_is_cut_short_is_named(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read as safetensors"):
        find_model(str(directory))


@pytest.mark.parametrize(
    ("text", "why"), [("{", "not valid JSON"), ("[]", "expected an object"), ("{}", "has no num_hidden_layers|no ")]
)
def test_a_config_that_is_none_is_refused(directory: Path, text: str, why: str) -> None:
    (directory / "config.json").write_text(text)
    with pytest.raises(UserError, match=why):
        find_model(str(directory))


def test_a_directory_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json there"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "/no/such/place", "./model", ""])
def test_what_is_no_name_at_all(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no hub name|no config\.json there"):
        find_model(name)


def test_the_hub_is_asked_once_for_each_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.has("/acme/tiny/resolve/v1/config.json", TINY, x_repo_commit="abc123")
    hub.has("/acme/tiny/resolve/v1/model.safetensors.index.json", {"metadata": {"total_size": 1234}})
    found = find_model("acme/tiny", revision="v1")
    assert (found.weight_bytes, found.shape.layers) == (1234, 2)
    assert found.source == "the Hugging Face hub, revision abc123"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}
    assert len(hub.asked) == 2


def test_the_hub_is_believed_before_the_shapes_that_ship(hub: Hub) -> None:
    hub.has(f"/{LLAMA_8B}/resolve/main/config.json", TINY)
    assert find_model(LLAMA_8B).shape.layers == 2


def test_what_is_in_the_cache_needs_no_hub(cache: Path) -> None:
    repo = cache / "models--acme--tiny"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc" / "config.json").write_text(json.dumps(TINY))
    safetensors(repo / "snapshots" / "abc" / "model.safetensors", {"a": ("BF16", 1000)})
    found = find_model("acme/tiny")
    assert (found.weight_bytes, found.source) == (1000, "the Hugging Face cache, revision abc")


def test_without_a_hub_the_shapes_that_ship_are_used_and_named() -> None:
    found = find_model(LLAMA_8B)
    assert found.shape.parameters == 8_030_261_248
    assert found.source.startswith("the shapes that ship with tieryard, since the hub cannot be reached (ConnectError)")


def test_offline_nobody_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in find_model(LLAMA_8B).source
    assert hub.asked == []


def test_a_model_that_nobody_has() -> None:
    with pytest.raises(UserError, match=r"acme/tiny: the hub cannot be reached .*; name a directory that holds"):
        find_model("acme/tiny")


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (401, "RepoNotFound", "no such model, or not for this token"),
        (401, "GatedRepo", "asks for a token"),
        (403, "", "asks for a token"),
        (404, "EntryNotFound", r"has no config\.json"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (503, "", "answered HTTP 503"),
        (404, "", "answered HTTP 404"),
    ],
)
def test_what_the_hub_refuses_is_said_as_it_is(hub: Hub, status: int, code: str, why: str) -> None:
    hub.has("/acme/tiny/resolve/v9/config.json", {}, status=status, x_error_code=code)
    with pytest.raises(UserError, match=why):
        find_model("acme/tiny", revision="v9")


def test_every_shipped_shape_can_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in known_configs():
        found = find_model(name)
        assert found.weight_bytes > 0
        assert not any("is not known here" in said for said in found.shape.assumptions)
