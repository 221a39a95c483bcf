"""The catalog: tiers, deployments, prices and routing, read from `tieryard.yaml`.

It is declarative and validated whole: a bad file is refused with the line, the field and what was expected.
"""

from tieryard.catalog.benchmarks import Benchmarks, BenchmarkSchedule, Gate, Judge, Limits, Sample, SampleItem
from tieryard.catalog.deployments import Deployment, served_model
from tieryard.catalog.engines import (
    FLEET_ENV,
    FLEET_FLAGS,
    OWN_SERVERS,
    AttachedEngine,
    Check,
    EngineSpec,
    InstantEngine,
    LlamaCppEngine,
    LoraEngine,
    RateLimits,
    VllmEngine,
)
from tieryard.catalog.prices import BookPrice, Price
from tieryard.catalog.reading import load_catalog, parse_catalog
from tieryard.catalog.rents import Host, Rent
from tieryard.catalog.routing import Breaker, Exploration, Policy, Routing, Shadow, Weights
from tieryard.catalog.sizes import SizeClass
from tieryard.catalog.tiers import REALTIME, Tier
from tieryard.catalog.whole import Catalog

__all__ = [
    "FLEET_ENV",
    "FLEET_FLAGS",
    "OWN_SERVERS",
    "REALTIME",
    "AttachedEngine",
    "BenchmarkSchedule",
    "Benchmarks",
    "BookPrice",
    "Breaker",
    "Catalog",
    "Check",
    "Deployment",
    "EngineSpec",
    "Exploration",
    "Gate",
    "Host",
    "InstantEngine",
    "Judge",
    "Limits",
    "LlamaCppEngine",
    "LoraEngine",
    "Policy",
    "Price",
    "RateLimits",
    "Rent",
    "Routing",
    "Sample",
    "SampleItem",
    "Shadow",
    "SizeClass",
    "Tier",
    "VllmEngine",
    "Weights",
    "load_catalog",
    "parse_catalog",
    "served_model",
]
