"""From a deployment in the catalog to the engine that serves it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypedDict

from tieryard.catalog import AttachedEngine, Catalog, Deployment, LoraEngine, VllmEngine, served_model
from tieryard.catalog import InstantEngine as InstantSpec
from tieryard.engines import Engine
from tieryard.engines.instant import InstantEngine
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.engines.vllm_server import VllmServerEngine
from tieryard.errors import UserError

_KEY = re.compile(r"[\x21-\x7e]+")
_SPARE = 8  # connections beside those of requests: for health checks, and while one closes


def open_engine(catalog: Catalog, name: str, *, key: str | None = None, cache_dir: Path) -> Engine:
    """The engine, not yet started. `key` is the bearer key of attached servers whose `key_env` names no other; where
    that variable holds none, the engine does not start, and says so."""
    deployment = catalog.deployments[name]
    spec = deployment.engine
    if isinstance(spec, LoraEngine):
        raise UserError(f"'{name}' is a LoRA adapter, served by its host's engine: open '{spec.host}'")
    if isinstance(spec, VllmEngine):
        adapters, secrets = _adapters(catalog, name), _key_variables(catalog)
        return VllmServerEngine(name, deployment, adapters=adapters, cache_dir=cache_dir, secrets=secrets)
    if isinstance(spec, AttachedEngine):
        keyed = _keyed(name, spec, key)
        return _served_at(spec.url, deployment, model=served_model(deployment), server=spec.server, **keyed)
    if isinstance(spec, InstantSpec):
        return InstantEngine(delay_ms=spec.delay_ms)
    return LlamaCppEngine(
        spec.weights,
        slots=spec.slots,
        context=deployment.context_limit,
        threads=spec.threads,
        embeddings=deployment.serves == "embeddings",
    )


def open_replica(catalog: Catalog, name: str, url: str, *, key: str | None = None) -> Engine:
    """A replica that some worker serves at `url`, for whoever only sends requests to it; a LoRA adapter's is its
    host's. One without a URL lives inside its worker; this is another like it."""
    deployment, host = catalog.deployments[name], catalog.deployments[catalog.host_of(name)]
    model = name if isinstance(deployment.engine, LoraEngine) else served_model(deployment)
    spec = host.engine
    if isinstance(spec, InstantSpec):
        return InstantEngine(delay_ms=spec.delay_ms)
    if isinstance(spec, AttachedEngine):
        # The key is for the server that the catalog names, and for no other that a gauge may.
        own = url == spec.url.rstrip("/")
        keyed = _keyed(catalog.host_of(name), spec, key) if own else Keyed()
        return _served_at(url, deployment, model=model, server=spec.server, **keyed)
    server = "vllm" if isinstance(spec, VllmEngine) else "llama_cpp"
    return _served_at(url, deployment, model=model, server=server)


def missing_key(catalog: Catalog, name: str) -> str:
    """Why this process has no key for a deployment's server, where the catalog names the variable that should hold it;
    empty when it has."""
    host = catalog.host_of(name)
    spec = catalog.deployments[host].engine
    return _keyed(host, spec, None).get("missing", "") if isinstance(spec, AttachedEngine) else ""


class Keyed(TypedDict, total=False):
    """A server's bearer key, or what is said in its place."""

    key: str | None
    missing: str


def _keyed(name: str, spec: AttachedEngine, default: str | None) -> Keyed:
    if spec.key_env is None:
        return Keyed(key=default)
    found = os.environ.get(spec.key_env, "").strip()
    if not found:
        return Keyed(missing=f"the key of '{name}' is missing: set the environment variable {spec.key_env}")
    if not _KEY.fullmatch(found):  # it would be quoted by whoever refuses it as a header
        return Keyed(missing=f"the key of '{name}', in {spec.key_env}, has characters that no key has")
    return Keyed(key=found)


def _key_variables(catalog: Catalog) -> set[str]:
    engines = (deployment.engine for deployment in catalog.deployments.values())
    return {e.key_env for e in engines if isinstance(e, AttachedEngine) and e.key_env is not None}


def _adapters(catalog: Catalog, host: str) -> dict[str, str]:
    engines = {name: catalog.deployments[name].engine for name in catalog.adapters_of(host)}
    return {name: engine.weights for name, engine in engines.items() if isinstance(engine, LoraEngine)}


def _served_at(
    url: str, deployment: Deployment, *, model: str, server: str, key: str | None = None, missing: str = ""
) -> Engine:
    connections = deployment.max_in_flight + _SPARE
    return OpenAIHttpEngine(url, model=model, server=server, key=key, missing=missing, connections=connections)
