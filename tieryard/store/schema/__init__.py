"""The tables, declared with SQLModel. Migrations in `migrations/` make them; a test holds the two equal.

Shape follows the write path. `job` is narrow, with room left on each page (fillfactor 40), and the columns
that change (state, fence, worker, deployment) are in no index and no index predicate: so classify and claim
are HOT updates that touch one page and no index. Request bodies live in `line` and answers in `result`.
The hot tables carry no foreign keys: each would lock and look up a parent row per insert, and every row is
written by one statement that has just seen its parent.
"""

from tieryard.store.schema.benchmarks import (
    Benchmark,
    BenchmarkProfile,
    Canary,
    GoldenItem,
    GoldenScore,
    GoldenSet,
    HumanLabel,
    LiveVerdict,
    Preference,
    Promotion,
)
from tieryard.store.schema.classifications import (
    Classification,
    ClassificationAnswer,
    ClassificationPart,
    ClassificationRow,
    ClassificationText,
)
from tieryard.store.schema.fleet import ApiKey, CatalogVersion, IdCounter, Tenant, Worker
from tieryard.store.schema.money import Budget, BudgetPeriod, Ledger, Price, Quote, RentWindow, Reservation
from tieryard.store.schema.results import Outcome, Result, Timing
from tieryard.store.schema.routing import Decision, RoutingSnapshot, Shadow, StepBack
from tieryard.store.schema.webhooks import Delivery, DeliveryAttempt, DeliveryLane, Outbox, WebhookEndpoint
from tieryard.store.schema.work import Batch, File, Idempotency, Job, Line

__all__ = [
    "ApiKey",
    "Batch",
    "Benchmark",
    "BenchmarkProfile",
    "Budget",
    "BudgetPeriod",
    "Canary",
    "CatalogVersion",
    "Classification",
    "ClassificationAnswer",
    "ClassificationPart",
    "ClassificationRow",
    "ClassificationText",
    "Decision",
    "Delivery",
    "DeliveryAttempt",
    "DeliveryLane",
    "File",
    "GoldenItem",
    "GoldenScore",
    "GoldenSet",
    "HumanLabel",
    "IdCounter",
    "Idempotency",
    "Job",
    "Ledger",
    "Line",
    "LiveVerdict",
    "Outbox",
    "Outcome",
    "Preference",
    "Price",
    "Promotion",
    "Quote",
    "RentWindow",
    "Reservation",
    "Result",
    "RoutingSnapshot",
    "Shadow",
    "StepBack",
    "Tenant",
    "Timing",
    "WebhookEndpoint",
    "Worker",
]
