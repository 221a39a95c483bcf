"""Tieryard's own routes with `httpx`: one job, and what is kept of it. A repeated POST makes nothing twice."""

from __future__ import annotations

import os
import time
import uuid

import httpx

yard = httpx.Client(
    base_url=os.environ.get("TIERYARD_URL", "http://127.0.0.1:8000"),
    headers={"authorization": f"Bearer {os.environ['TIERYARD_API_KEY']}"},
    timeout=60,
)

asked = {"prompt": "What is the capital of Peru?", "tier": "interactive", "max_tokens": 16}
once = {"Idempotency-Key": str(uuid.uuid4())}
job = yard.post("/v1/jobs", json=asked, headers=once).raise_for_status().json()
assert yard.post("/v1/jobs", json=asked, headers=once).json()["id"] == job["id"]

while job["finished_at"] is None:
    time.sleep(0.2)
    job = yard.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
print(job["state"], job["deployment"], job["usage"], job["cost_usd"])

story = yard.get(f"/v1/jobs/{job['id']}/story").json()
for candidate in story["decisions"][0]["candidates"]:
    print(candidate["name"], candidate["expected_cost_usd"], candidate["why"] or "chosen")
