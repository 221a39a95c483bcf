"""From a deployment in the catalog to the engine that serves it."""

from __future__ import annotations

from pathlib import Path

from tieryard.catalog import AttachedEngine, Catalog, Deployment, LoraEngine, VllmEngine, served_model
from tieryard.catalog import InstantEngine as InstantSpec
from tieryard.engines import Engine
from tieryard.engines.instant import InstantEngine
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.engines.vllm_server import VllmServerEngine
from tieryard.errors import UserError

_SPARE = 8  # connections beside those of requests: for health checks, and while one closes


def open_engine(catalog: Catalog, name: str, *, key: str | None = None, cache_dir: Path) -> Engine:
    """The engine, not yet started. `key` is the bearer key of an attached server."""
    deployment = catalog.deployments[name]
    spec = deployment.engine
    if isinstance(spec, LoraEngine):
        raise UserError(f"'{name}' is a LoRA adapter, served by its host's engine: open '{spec.host}'")
    if isinstance(spec, VllmEngine):
        return VllmServerEngine(name, deployment, adapters=_adapters(catalog, name), cache_dir=cache_dir)
    if isinstance(spec, AttachedEngine):
        return _served_at(spec.url, deployment, model=served_model(deployment), server=spec.server, key=key)
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
        key = key if url == spec.url.rstrip("/") else None
        return _served_at(url, deployment, model=model, server=spec.server, key=key)
    server = "vllm" if isinstance(spec, VllmEngine) else "llama_cpp"
    return _served_at(url, deployment, model=model, server=server, key=None)


def _adapters(catalog: Catalog, host: str) -> dict[str, str]:
    engines = {name: catalog.deployments[name].engine for name in catalog.adapters_of(host)}
    return {name: engine.weights for name, engine in engines.items() if isinstance(engine, LoraEngine)}


def _served_at(url: str, deployment: Deployment, *, model: str, server: str, key: str | None) -> Engine:
    return OpenAIHttpEngine(url, model=model, server=server, key=key, connections=deployment.max_in_flight + _SPARE)
