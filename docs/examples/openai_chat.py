"""Calls that wait, with the official `openai` package: whole, streamed, and with an answer that must fit a schema."""

from __future__ import annotations

import os
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(
    base_url=os.environ.get("TIERYARD_URL", "http://127.0.0.1:8000") + "/v1", api_key=os.environ["TIERYARD_API_KEY"]
)

print([model.id for model in client.models.list()])

# The headers say which deployment was chosen, and under which job everything about the call is kept.
question = [{"role": "user", "content": "What is the capital of Peru?"}]
raw = client.chat.completions.with_raw_response.create(model="auto", messages=question, max_tokens=16)
print(raw.headers["x-selected-model"], raw.headers["x-tieryard-job"], raw.parse().choices[0].message.content)

# `tier` is Tieryard's own: realtime goes before everything else.
stream = client.chat.completions.create(
    model="class:small", messages=question, max_tokens=16, stream=True, extra_body={"tier": "realtime"}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()


class Review(BaseModel):
    mood: Literal["positive", "negative"]


parsed = client.chat.completions.parse(
    model="auto",
    messages=[{"role": "user", "content": "Is it positive or negative? The soup was cold."}],
    response_format=Review,
    max_tokens=64,
    temperature=0,
)
print(parsed.choices[0].message.parsed)
