"""A batch with the official `openai` package. Only `base_url` and the key are Tieryard's.

TIERYARD_URL and TIERYARD_API_KEY say where the fleet is, as for the `tieryard` command.
"""

from __future__ import annotations

import json
import os
import time

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("TIERYARD_URL", "http://127.0.0.1:8000") + "/v1", api_key=os.environ["TIERYARD_API_KEY"]
)

reviews = ["The soup was cold.", "Best dumplings in town!", "We waited an hour for the bill."]
lines = [
    {
        "custom_id": f"review-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "auto",  # each line is routed; a deployment's name would pin it
            "messages": [{"role": "user", "content": f"Is this review positive or negative? {review}"}],
            "max_tokens": 16,
        },
    }
    for number, review in enumerate(reviews)
]

file = client.files.create(file=("reviews.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id,
    endpoint="/v1/chat/completions",
    completion_window="1h",  # any duration
    metadata={"what": "reviews"},
    extra_body={"reuse": True},  # lines that an earlier batch has answered are not asked again
)
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)

print(batch.status, batch.request_counts)
for line in client.files.content(batch.output_file_id).text.splitlines():
    answer = json.loads(line)
    print(answer["custom_id"], answer["response"]["body"]["model"], answer["response"]["body"]["choices"][0]["message"])
