"""An embedded fleet of real processes whose one deployment starts and owns a real vLLM."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import psycopg
import pytest
import redis
from openai import OpenAI

from tests.conftest import eventually, open_directory
from tests.vllm.engine import NAME, catalog_text
from tieryard.embedded import free_port
from tieryard.engines.load import Load, read_load
from tieryard.metrics import Metrics, Replica
from tieryard.supervisor import Fleet

KEY = "ty_vllm"
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


@dataclass
class Running:
    """A fleet that is up, an OpenAI client on it, its database and its broker."""

    fleet: Fleet
    client: OpenAI
    database: psycopg.Connection[Any]
    broker: redis.Redis

    @property
    def worker(self) -> int:
        """The pid of the inference worker."""
        process = self.fleet.children[f"infer-{NAME}"].process
        assert process is not None
        return process.pid

    @property
    def _replica(self) -> Replica:
        """The worker and its vLLM, as its gauge tells of them."""
        return next(replica for replica in Metrics(self.broker).replicas(NAME) if replica.capacity > 0)

    @property
    def server(self) -> str:
        """Where vLLM listens."""
        return self._replica.url

    @property
    def limit(self) -> int:
        """How many requests the worker keeps in vLLM at once."""
        return self._replica.capacity

    def load(self) -> Load:
        """What vLLM says of itself now."""
        found = read_load(httpx.get(f"{self.server}/metrics", timeout=10, trust_env=False).text)
        assert found is not None
        return found

    def submit(self, prompts: Iterable[str], **body: Any) -> str:
        """A batch of chats through a file, as OpenAI's package makes one. The custom ids count from 0."""
        lines = [
            {
                "custom_id": str(i),
                "method": "POST",
                "url": CHAT,
                "body": {"model": "auto", "messages": [{"role": "user", "content": prompt}], **body},
            }
            for i, prompt in enumerate(prompts)
        ]
        return self.submit_lines(lines)

    def submit_lines(self, lines: list[dict[str, Any]]) -> str:
        """A batch of lines as they are."""
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = self.client.files.create(file=("lines.jsonl", content), purpose="batch")
        return self.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id

    def succeeded(self, batch: str) -> int:
        counts = self.client.batches.retrieve(batch).request_counts
        return counts.completed if counts is not None else 0

    def until_over(self, batch: str, *, within_s: float = 300) -> Any:
        """The batch, when it has ended."""
        eventually(lambda: self.client.batches.retrieve(batch).status in OVER, within_s=within_s, what=f"{batch}'s end")
        return self.client.batches.retrieve(batch)

    def answers(self, file_id: str) -> list[dict[str, Any]]:
        """By lines of bytes: those of a text also end at characters that a model may well say."""
        return [json.loads(line) for line in self.client.files.content(file_id).content.splitlines()]

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self.database.execute(statement).fetchall()


@contextlib.contextmanager
def run_fleet(**options: Any) -> Iterator[Running]:
    """A fleet on `catalog_text(**options)`, its engine serving."""
    with pytest.MonkeyPatch.context() as patch, open_directory() as home:
        for name, value in {"LEASE_S": "4", "HEARTBEAT_S": "1", "API_KEY": KEY}.items():
            patch.setenv(f"TIERYARD_{name}", value)
        catalog = home / "tieryard.yaml"
        catalog.write_text(catalog_text(**options))
        with Fleet(home / "data", port=free_port(), catalog=catalog) as fleet:
            fleet.wait_until_ready()
            tending = threading.Thread(target=fleet.run, daemon=True)
            tending.start()
            try:
                with (
                    OpenAI(base_url=f"{fleet.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client,
                    psycopg.connect(fleet.database_url, autocommit=True) as database,
                    contextlib.closing(redis.Redis.from_url(fleet.redis_url)) as broker,
                ):
                    yield Running(fleet, client, database, broker)
            finally:
                fleet.stopping.set()
                tending.join()
