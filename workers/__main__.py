"""`python -m workers KIND`: runs one worker process until SIGTERM."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Annotated, Any

import typer
from celery.beat import Scheduler, Service

from tieryard.catalog import Catalog
from tieryard.errors import UserError
from tieryard.lease import OUTDATED_EXIT
from tieryard.queues import BENCHMARK, CALLBACKS, CLASSIFYING, EXPAND, model_queue, replica_queue, tier_queue
from tieryard.settings import load_settings
from tieryard.store import Store, workers
from workers.yard import Yard, gate_of, left_queues, taking_tiers

RESCUE = "rescue"
_BEAT_STOPS_WITHIN_S = 5.0
_TICKS_S = {RESCUE: 1.0, CLASSIFYING: 1.0, BENCHMARK: 2.0, EXPAND: 5.0, CALLBACKS: 5.0}

cli = typer.Typer(help="Run one worker process of the fleet.", no_args_is_help=True, pretty_exceptions_enable=False)


@cli.command()
def expand() -> None:
    """Expands and feeds batches, and rescues jobs."""
    from workers.expand import Expander
    from workers.feed import Feeder
    from workers.renting import Renting
    from workers.rescue import Rescuer

    yard = Yard("expand", load_settings(), consume=[RESCUE, EXPAND])
    expander = Expander(yard, yard.admission())
    feeder, rescuer, renting = Feeder(yard), Rescuer(yard), Renting(yard)

    def rescue() -> None:
        rescuer.tick()
        renting.tick()

    yard.task(EXPAND, expander.run)
    yard.task(RESCUE, rescue)
    yard.in_force.follow(expander.prepare)
    yard.consume(concurrency=2, started=lambda _: feeder.start(), stopping=feeder.stop)


@cli.command()
def classify() -> None:
    """Routes jobs from the tier queues, most urgent tier first."""
    from workers.classify import Classifier

    yard = Yard("classify", load_settings(), consume=lambda catalog: map(tier_queue, catalog.tiers))
    classifier = Classifier(yard, yard.admission())
    yard.task("classify", classifier.classify)

    def start(consumer: Any) -> None:
        yard.in_force.follow(taking_tiers(yard, consumer, classifier.prepare))

    yard.consume(own=lambda _: left_queues(yard), started=start)


@cli.command()
def infer(
    deployment: Annotated[str, typer.Argument(help="A deployment of the catalog.")],
    url: Annotated[str | None, typer.Option(help="Of this replica's own server, if attached.")] = None,
    replica: Annotated[int, typer.Option(min=1, help="Which of the deployment's on this host: each has its own.")] = 1,
) -> None:
    """Feeds one replica of a deployment's engine from its model queue."""
    from workers.infer import Inference
    from workers.renewal import Renewal

    def queues(catalog: Catalog) -> list[str]:
        return [model_queue(name) for name in served_by(catalog, deployment)]

    yard = Yard("infer", load_settings(), consume=queues, deployment=deployment, replica=replica)
    served, shared = served_by(yard.catalog, deployment), queues(yard.catalog)
    inference = Inference(yard, deployment, engine=yard.engine(deployment, url=url))
    yard.task("infer", inference.offer)

    def own(worker_id: int) -> list[str]:
        return [replica_queue(name, worker_id) for name in served]

    def start(consumer: Any) -> None:
        inference.start(gate_of(consumer, *shared, *own(yard.worker_id)))
        yard.in_force.follow(Renewal(yard, deployment, inference).prepare)

    yard.consume(own=own, started=start, stopping=inference.drain)
    if yard.outdated:
        sys.exit(OUTDATED_EXIT)


def served_by(catalog: Catalog, deployment: str) -> list[str]:
    """What an infer process of this deployment serves: it and its adapters. Raises UserError."""
    if deployment not in catalog.deployments:
        known = ", ".join(catalog.deployments)
        raise UserError(f"'{deployment}' is not a deployment of the catalog in force; it has {known}")
    if (host := catalog.host_of(deployment)) != deployment:
        raise UserError(f"'{deployment}' is a LoRA adapter: the infer process of its host '{host}' serves it")
    return [deployment, *catalog.adapters_of(deployment)]


@cli.command()
def callback() -> None:
    """Delivers signed callbacks from the outbox."""
    from workers.callback import Callbacks

    yard = Yard("callback", load_settings(), consume=[CALLBACKS])
    callbacks = Callbacks(yard)
    yard.task(CALLBACKS, callbacks.wake)
    yard.consume(started=lambda _: callbacks.start(), stopping=callbacks.stop)


@cli.command()
def classifying() -> None:
    """Works off classification runs: has their texts asked, and reads labels from the answers."""
    from workers.classifying import Classifying

    yard = Yard("classifying", load_settings(), consume=[CLASSIFYING])
    worker = Classifying(yard, yard.admission())
    yard.task(CLASSIFYING, worker.tick)
    yard.in_force.follow(worker.prepare)
    yard.consume(stopping=worker.stop)


@cli.command()
def benchmark() -> None:
    """Measures deployments: benchmark runs, as they are asked for and as schedules want them."""
    from workers.benchmark import Benchmarker

    yard = Yard("benchmark", load_settings(), consume=[BENCHMARK])
    benchmarker = Benchmarker(yard)
    yard.task(BENCHMARK, benchmarker.tick)
    yard.in_force.follow(benchmarker.prepare)
    yard.consume(stopping=benchmarker.stop)


@cli.command()
def beat() -> None:
    """Celery beat: ticks for rescue, runs and benchmarks, and for expansion and callbacks whose nudge was lost."""
    yard = Yard("beat", load_settings(), consume=list(_TICKS_S))
    for name, every_s in _TICKS_S.items():
        # A tick that waited longer than its interval has been overtaken by the next one.
        yard.app.conf.beat_schedule[name] = {
            "task": name,
            "schedule": every_s,
            "options": {"queue": name, "expires": every_s},
        }
    service = Service(yard.app, max_interval=1, scheduler_cls=Scheduler)  # in memory: the default one pickles

    def stop() -> None:
        service.stop(wait=False)
        last = threading.Timer(_BEAT_STOPS_WITHIN_S, os._exit, [0])  # it may be waiting for Redis, without end
        last.daemon = True
        last.start()

    Yard.on_stop_signals(stop)
    yard.join()
    try:
        service.start()
    finally:
        yard.leave()


@cli.command()
def health() -> None:
    """Exits with 0 when a worker of this container has a live lease."""
    store = Store(load_settings().database_url.get_secret_value())
    sys.exit(0 if workers.fresh_on(store, host=socket.gethostname()) else 1)


def main() -> None:
    # A parcel is too small to share out: the tokenizer's threads would only take cores from other processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("C_FORCE_ROOT", "1")  # containers run as who they run; messages are JSON, never code
    try:
        cli()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
