"""From a deployment in the catalog to the engine that serves it."""

from __future__ import annotations

from tieryard.catalog import AttachedEngine, Deployment
from tieryard.catalog import InstantEngine as InstantSpec
from tieryard.engines import Engine
from tieryard.engines.instant import InstantEngine
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.engines.openai_http import OpenAIHttpEngine

_SPARE = 8  # connections beside those of requests: for health checks, and while one closes


def open_engine(deployment: Deployment, *, key: str | None = None) -> Engine:
    """The engine, not yet started. `key` is the bearer key of an attached server."""
    spec = deployment.engine
    if isinstance(spec, AttachedEngine):
        return _attached(deployment, spec, spec.url, key)
    if isinstance(spec, InstantSpec):
        return InstantEngine(delay_ms=spec.delay_ms)
    return LlamaCppEngine(
        spec.weights,
        slots=spec.slots,
        context=deployment.context_limit,
        threads=spec.threads,
        embeddings=deployment.serves == "embeddings",
    )


def open_replica(deployment: Deployment, url: str, *, key: str | None = None) -> Engine:
    """A replica that some worker serves at `url`, for whoever only sends requests to it. One without a URL lives
    inside its worker; this is another like it."""
    spec = deployment.engine
    if isinstance(spec, InstantSpec):
        return InstantEngine(delay_ms=spec.delay_ms)
    if isinstance(spec, AttachedEngine):
        # The key is for the server that the catalog names, and for no other that a gauge may.
        return _attached(deployment, spec, url, key if url == spec.url.rstrip("/") else None)
    return OpenAIHttpEngine(
        url, model=deployment.model, server="llama_cpp", connections=deployment.max_in_flight + _SPARE
    )


def _attached(deployment: Deployment, spec: AttachedEngine, url: str, key: str | None) -> Engine:
    return OpenAIHttpEngine(
        url,
        model=spec.served_model or deployment.model,
        server=spec.server,
        key=key,
        connections=deployment.max_in_flight + _SPARE,
    )
