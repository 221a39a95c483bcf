"""From a deployment in the catalog to the engine that serves it."""

from __future__ import annotations

from tieryard.catalog import AttachedEngine, Deployment
from tieryard.catalog import InstantEngine as InstantSpec
from tieryard.engines import Engine
from tieryard.engines.instant import InstantEngine
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.engines.openai_http import OpenAIHttpEngine


def open_engine(deployment: Deployment, *, key: str | None = None) -> Engine:
    """The engine, not yet started. `key` is the bearer key of an attached server."""
    spec = deployment.engine
    if isinstance(spec, AttachedEngine):
        return OpenAIHttpEngine(
            spec.url,
            model=spec.served_model or deployment.model,
            server=spec.server,
            key=key,
            connections=deployment.max_in_flight + 8,
        )
    if isinstance(spec, InstantSpec):
        return InstantEngine(delay_ms=spec.delay_ms)
    return LlamaCppEngine(spec.weights, slots=spec.slots, context=deployment.context_limit, threads=spec.threads)
