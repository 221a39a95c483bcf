"""`tieryard deployments` as an operator meets it: nothing cut in 80 columns, nothing said that is not known."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tieryard.breakers import CLOSED, Breaker
from tieryard.cli import deployments
from tieryard.cli.main import cli
from tieryard.engines.load import Load
from tieryard.errors import StoreError
from tieryard.metrics import EngineState, Replica
from tieryard.store.reads import PrefixCache
from tieryard.store.workers import Followers, Following, Taken

NOBODY = Followers(1, ())
Show = Callable[..., Result]
BUSY = Load(running=60, waiting=12_345, kv_usage=1.0, preemptions=1_234_567, prefix_queries=1000, prefix_hits=370)


def replica(load: Load | None = BUSY, state: EngineState = EngineState.SERVING) -> Replica:
    return Replica(
        worker_id=1_234_567,
        url="http://here",
        capacity=1024,
        in_flight=1000,
        calls={},
        backlog=123_456,
        state=state,
        ttft_ms=123_456.0,
        load=load,
    )


def cache(cached: int = 500, slope: float | None = 0.5) -> PrefixCache:
    return PrefixCache("small", 1_234_567, 1_234_567_890, cached, slope)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Runs the command on replicas and prefix caches as given; without caches the database is away."""

    def run(
        replicas: list[Replica],
        caches: list[PrefixCache] | None,
        columns: int = 80,
        name: str = "small",
        breaker: Breaker = CLOSED,
        followers: Followers = NOBODY,
        words: tuple[str, ...] = (),
    ) -> Result:
        @contextlib.contextmanager
        def live(data_dir: object) -> Iterator[object]:
            metrics = SimpleNamespace(replicas=lambda _: replicas, breaker=lambda *_: breaker)
            yield metrics, SimpleNamespace(deployments=[name])

        @contextlib.contextmanager
        def database(data_dir: object) -> Iterator[object]:
            if caches is None:
                raise StoreError("Postgres is away: no route")
            yield None

        monkeypatch.setattr(deployments, "live_metrics", live)
        monkeypatch.setattr(deployments, "database", database)
        monkeypatch.setattr(deployments.reads, "prefix_cache", lambda _, since: caches)
        monkeypatch.setattr(deployments.workers, "followers", lambda _: followers)
        return CliRunner().invoke(cli, ["deployments", *words], env={"COLUMNS": str(columns)})

    return run


def cells(output: str) -> list[list[str]]:
    """The words of the tables' rows, by line."""
    return [line.split() for line in output.splitlines()]


def test_nothing_is_cut_in_80_columns(show: Show) -> None:
    name = "a-rather-long-name-of-a-deployment"
    result = show([replica()], [cache()], name=name)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    [row] = [words for words in cells(result.output) if "serving" in words]
    figures = ["1,024", "1,000", "123,456", "12,345", "100%", "1,234,567", "37%", "123,456"]
    assert row[1:] == ["1234567", "serving", *figures]
    [saved] = [words for words in cells(result.output) if "1,234,567,890" in words]
    assert saved == ["small", "1,234,567", "1,234,567,890", "500", "0%", "~0.2", "s"]
    folded = "".join(line.split()[0] for line in result.output.splitlines() if line[:1] in name and line.strip())
    assert name in folded


@pytest.mark.parametrize(
    ("cached", "hits", "queries", "told"),
    [
        (500, 0, 0, True),
        (0, 0, 0, False),
        (0, 0, 1000, True),
        (0, 370, 1000, False),
    ],
    ids=["seen", "nobody says", "the server found none", "the server does not tell of a request's"],
)
def test_no_hits_are_told_from_hits_that_are_not_known(
    show: Show, cached: int, hits: int, queries: int, told: bool
) -> None:
    load = Load(running=0, waiting=0, kv_usage=0.0, preemptions=0, prefix_queries=queries, prefix_hits=hits)
    result = show([replica(load)], [cache(cached)])
    [saved] = [words for words in cells(result.output) if "1,234,567,890" in words]
    assert ("–" not in saved) == told
    assert ("0%" in saved) == told


def test_a_server_that_says_nothing_of_itself(show: Show) -> None:
    result = show([replica(None)], [])
    [row] = [words for words in cells(result.output) if "serving" in words]
    assert row[-5:] == ["–", "–", "–", "–", "123,456"]


def test_replicas_are_shown_without_the_database(show: Show) -> None:
    result = show([replica()], None)
    assert result.exit_code == 1
    assert "serving" in result.output
    assert "What prefix caches saved is not known: Postgres is away: no route" in result.output


@pytest.mark.parametrize("found", [[], [replica(state=EngineState.UNFIT)]])
def test_what_does_not_serve_is_a_failure(show: Show, found: list[Replica]) -> None:
    assert show(found, []).exit_code == 1


def test_what_holds_a_deployment_is_said_once(show: Show) -> None:
    why = "its 500 requests a minute are used up for 12 s more"
    held = [replace(replica(), held=why), replace(replica(), held=why)]
    result = show(held, [], columns=120, breaker=Breaker(refused=1_500))
    assert result.output.count(f"small: held; {why}") == 1
    assert "small: its provider refused 1,500 requests (429) of late" in result.output


def test_an_open_breaker_is_shown(show: Show) -> None:
    opened = Breaker(opened=True, open_for_s=5, failed=7, of=9, within_s=30)
    result = show([replica()], [], columns=120, breaker=opened)
    assert "small: its circuit breaker is open: 7 of 9 starts failed in 30 s" in result.output


def test_deployments_as_json(show: Show) -> None:
    [found] = json.loads(show([replica()], [cache()], words=("--json",)).stdout)
    assert (found["deployment"], found["prefix_cache"]["starts"]) == ("small", 1_234_567)
    assert (found["replicas"][0]["state"], found["replicas"][0]["load"]["waiting"]) == ("serving", 12_345)
    assert (found["breaker"]["why"], found["breaker"]["opened"]) == ("", False)
    away = show([], None, words=("--json",))
    assert away.exit_code == 1
    assert json.loads(away.stdout) == [{**found, "replicas": [], "prefix_cache": None}]


def follower(version: int, fault: str | None = None, **fields: object) -> Following:
    plain = {"kind": "infer", "deployment": "qwen", "host": "gpu1", "pid": 17}
    return Following(**{**plain, **fields}, taken=Taken(version, fault))  # type: ignore[arg-type]


def test_a_process_that_cannot_take_the_catalog_is_named_with_why(show: Show) -> None:
    others = (follower(12, kind="api", deployment=None), follower(12, deployment="small"))
    fault = "tokenizer '/models/qwen': no file /models/qwen/tokenizer.json"
    result = show([replica()], [], columns=200, followers=Followers(12, (*others, follower(11, fault))))
    said = "2 of 3 processes go by version 12 of the catalog; infer qwen (gpu1, pid 17) still by version 11: " + fault
    assert (said in result.output, result.exit_code) == (True, 1), result.output
    late = show([replica()], [], columns=200, followers=Followers(12, (*others, follower(11))))
    assert "still by version 11: it has yet to take the newest over" in late.output
    assert late.exit_code == 0, "a moment after it was applied this is as it should be"
    assert "catalog" not in show([replica()], [], followers=Followers(12, others)).output


def test_what_a_stranger_may_read_of_it() -> None:
    behind = [follower(11, "no file /secret"), follower(11, "no file /secret", pid=18), follower(0, host="secret")]
    found = Followers(12, (follower(12, kind="api", deployment=None), *behind))
    said = "1 of 4 processes go by version 12 of the catalog"
    assert found.summary() == f"{said}; infer qwen still by its file; infer qwen still by version 11"
