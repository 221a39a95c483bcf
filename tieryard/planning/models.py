"""Finds the model that a plan is for: a directory, a config.json, the hub, or the shapes that ship with this."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from tieryard.errors import UserError
from tieryard.planning.configs import read_shape
from tieryard.planning.quantization import Quantization
from tieryard.planning.shapes import ModelShape

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_TIMEOUT_S = 5.0
_KNOWN = Path(__file__).with_name("known.json")
_INDEX = "model.safetensors.index.json"
_HEADER_LIMIT = 100_000_000
"""Bytes: the safetensors format allows a header no more."""

_NARROWED = {"F64": 4, "F32": 2}
"""Types that vLLM serves narrower than they are stored, with the factor: `--dtype auto` serves at 16 bits."""


@dataclass(frozen=True, slots=True)
class Model:
    """A shape, where it was found, and the bytes of its files where they were at hand."""

    shape: ModelShape
    source: str
    file_bytes: int | None = None
    overridden: bool = False

    @property
    def weight_bytes(self) -> int:
        """Counted from the files, else computed from the shape. Raises UserError when neither is possible."""
        return self.shape.weight_bytes if self.file_bytes is None else self.file_bytes

    @property
    def weights_from(self) -> str:
        return "computed from the shape" if self.file_bytes is None else "counted in the safetensors files"

    def quantized(self, quantization: Quantization | None) -> Model:
        """The same model, stored otherwise. Its files no longer say what it takes."""
        return replace(self, shape=replace(self.shape, quantization=quantization), file_bytes=None, overridden=True)


def find_model(name: str, *, revision: str | None = None) -> Model:
    """A directory with a config.json, a config.json, or a name on the Hugging Face hub.

    A hub name is looked up in the local cache, then on the hub, then among the shapes that ship with this package.
    Raises UserError when none has it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_directory(path, name)
    if path.is_file():
        return Model(read_shape(_json(path), name=name), f"{path}")
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UserError(f"'{name}' is no directory with a config.json, no such file, and no hub name (owner/model)")
    found = _of_hub(name, revision)
    if isinstance(found, Model):
        return found
    config = known_configs().get(name)
    if config is None:
        raise UserError(
            f"{name}: {found}; name a directory that holds its config.json, or one of the {len(known_configs())}"
            f" shapes that ship with tieryard ({_KNOWN})"
        )
    return Model(read_shape(config, name=name), f"the shapes that ship with tieryard, since {found}")


def known_configs() -> dict[str, dict[str, Any]]:
    """The shipped shapes by hub name: of each config.json, what a plan needs."""
    return {name: entry["config"] for entry in _json(_KNOWN)["models"] for name in entry["names"]}


def _of_directory(directory: Path, name: str) -> Model:
    config = directory / "config.json"
    if not config.is_file():
        raise UserError(f"{directory}: no config.json there; a model's directory has one beside its safetensors files")
    shape = read_shape(_json(config), name=name)
    return Model(shape, f"{config}", _file_bytes(directory, shape))


def _of_hub(name: str, revision: str | None) -> Model | str:
    """The model as the cache or the hub has it, or why neither has. Raises UserError for an unknown revision.

    One short request a file, without the hub library's own download: that one tries for half a minute to reach a hub
    that is not there.
    """
    import huggingface_hub as hub  # slow to import
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    cached = hub.try_to_load_from_cache(name, "config.json", revision=revision, cache_dir=cache)
    if isinstance(cached, str):
        directory = Path(cached).parent
        return replace(_of_directory(directory, name), source=f"the Hugging Face cache, revision {directory.name}")
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the cache has no copy"

    def fetch(file: str) -> httpx.Response:
        url = f"{constants.ENDPOINT}/{name}/resolve/{quote(revision or 'main', safe='')}/{file}"
        token = hub.get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(url, headers=headers, timeout=_HUB_TIMEOUT_S, follow_redirects=True)

    try:
        answer = fetch("config.json")
        if answer.status_code != httpx.codes.OK:
            return _refusal(answer, name, revision)
        shape = read_shape(_object(answer.content, f"{name}: config.json"), name=name)
        listed = fetch(_INDEX)  # a model in one file has none
    except httpx.HTTPError as error:
        return f"the hub cannot be reached ({type(error).__name__}), and the cache has no copy"
    index = _object(listed.content, f"{name}: {_INDEX}") if listed.status_code == httpx.codes.OK else {}
    commit = answer.headers.get("x-repo-commit", revision or "main")
    return Model(shape, f"the Hugging Face hub, revision {commit}", _index_bytes(index, shape))


def _refusal(answer: httpx.Response, name: str, revision: str | None) -> str:
    """What the hub meant by a status other than 200: it says so in a header."""
    code = answer.headers.get("x-error-code", "")
    if code == "RevisionNotFound":
        raise UserError(f"{name}: the hub has no revision '{revision}' of it", param="--revision")
    if code == "EntryNotFound":
        return "on the hub it has no config.json"
    if code == "GatedRepo" or answer.status_code == httpx.codes.FORBIDDEN:
        return "the hub asks for a token that may read it (HF_TOKEN)"
    if code == "RepoNotFound":
        return "the hub has no such model, or not for this token (HF_TOKEN)"
    return f"the hub answered HTTP {answer.status_code}"


def _file_bytes(directory: Path, shape: ModelShape) -> int | None:
    """Bytes of all tensors as served, from the files' headers, else from the index; None where neither is there."""
    whole = directory / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(directory.glob("*.safetensors"))
    index = _json(directory / _INDEX) if (directory / _INDEX).is_file() else None
    if index is not None:
        named = {directory / file for file in index.get("weight_map", {}).values()}
        files = sorted(named) if named and all(file.is_file() for file in named) else []
    if files:
        return sum(_tensor_bytes(file, narrowed=shape.quantization is None) for file in files)
    return _index_bytes(index or {}, shape)


def _index_bytes(index: dict[str, Any], shape: ModelShape) -> int | None:
    """The total that an index of the weights' files states; None where it has none, or for a wider type than served."""
    total = (index.get("metadata") or {}).get("total_size")
    if not total or any("float32" in said for said in shape.assumptions):
        return None
    return int(total)


def _tensor_bytes(file: Path, *, narrowed: bool) -> int:
    """A safetensors file opens with the length of its header (8 bytes, little end first) and the header, in JSON."""
    try:
        with file.open("rb") as opened:
            header = orjson.loads(opened.read(min(_HEADER_LIMIT, int.from_bytes(opened.read(8), "little"))))
        tensors = [(t["dtype"], *t["data_offsets"]) for name, t in header.items() if name != "__metadata__"]
        factors = _NARROWED if narrowed else {}
        return sum((end - start) // factors.get(dtype, 1) for dtype, start, end in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({type(error).__name__}); is it whole?") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _object(text: bytes, name: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{name}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name}: expected an object, as a config.json has")
    return found
