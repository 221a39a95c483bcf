"""Parcels: what goes to which queue, in which order and how it is written."""

from __future__ import annotations

import pytest

from tieryard.ids import from_runs
from tieryard.queues import Parcel, parcels_to_classify, parcels_to_infer, replica_of, replica_queue


def flat(parcels: list[Parcel]) -> list[int]:
    return [number for p in parcels for number in from_runs((run[0], run[1]) for run in p.runs)]


def test_a_batch_parcel_is_one_run() -> None:
    assert [p.runs for p in parcels_to_classify("bulk", 0.0, range(100, 228))] == [[(100, 64)], [(164, 64)]]


def test_ids_pass_each_other_only_inside_a_parcel() -> None:
    """Those of one key would otherwise pass all of another tenant that wait between them."""
    keyed = [(n, 1 + n % 2) for n in range(1000, 1640)]
    parcels = parcels_to_infer("short", "batch", 0.0, keyed)
    assert [sorted(flat([p])) for p in parcels] == [list(range(n, n + 64)) for n in range(1000, 1640, 64)]
    assert flat(parcels_to_classify("batch", 0.0, [*range(500, 564), *range(100, 164)]))[:64] == list(range(500, 564))


def test_a_run_without_a_key_is_sent_as_those_read_it_who_know_of_none() -> None:
    [parcel] = parcels_to_infer("short", "batch", 7.0, [(1, 0), (2, 0), (9, 5)])
    assert parcel.arguments() == ["batch", 7.0, [(1, 2), (9, 1, 5)]]


def test_realtime_jobs_travel_alone() -> None:
    assert len(parcels_to_infer("short", "realtime", 0.0, [(1, 0), (2, 0)])) == 2


@pytest.mark.parametrize("deployment", ["short", "a.b-c_d"])
def test_a_replicas_queue_names_its_owner(deployment: str) -> None:
    assert replica_of(replica_queue(deployment, 12)) == (deployment, 12)


@pytest.mark.parametrize("name", ["model.short", "model.short@", "model.@7", "model.short@x"])
def test_other_queues_have_no_owner(name: str) -> None:
    assert replica_of(name) is None
