"""Embeddings as vLLM serves them, for the fake: vectors of length 1 that a text alone decides."""

from __future__ import annotations

import base64
import math
import random
import struct
import time
from dataclasses import dataclass
from typing import Any

from tieryard.testing.fake_wire import Ask, RefusalError
from tieryard.testing.fault_plan import FakePlan


@dataclass(slots=True, kw_only=True)
class Embedding(Ask):
    """A request for vectors as read. `texts` are its inputs; token ids stand written out."""

    texts: list[str]
    dimensions: int
    packed: bool

    def whole(self) -> dict[str, Any]:
        vectors = [vector(text, self.dimensions) for text in self.texts]
        tokens = self.prompt_tokens
        data = [
            {"index": i, "object": "embedding", "embedding": _packed(v) if self.packed else v}
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        return {
            "id": f"embd-{self.number}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": data,
            **({} if self.has("no_usage") else {"usage": usage}),
        }


def read_embedding(body: dict[str, Any], plan: FakePlan, *, number: int, arrived: float) -> Embedding:
    """Checks a request for embeddings as vLLM does. Raises RefusalError."""
    texts = _inputs(body.get("input"))
    for text in texts:
        if (tokens := len(text.split())) > plan.context_limit:
            raise RefusalError(
                400,
                f"This model's maximum context length is {plan.context_limit} tokens. However, you requested "
                f"{tokens} tokens in the input for embedding generation. Please reduce the length of the input.",
                param="input_tokens",
            )
    size = body.get("dimensions")
    if size is not None and not (type(size) is int and 1 <= size <= plan.dimensions):
        raise RefusalError(400, f"dimensions must be 1 to {plan.dimensions}, got {size!r}.", param="dimensions")
    kind = body.get("encoding_format") or "float"
    if kind not in ("float", "base64"):
        raise RefusalError(400, "encoding_format: Input should be 'float' or 'base64'", param="encoding_format")
    return Embedding(
        number=number,
        model=plan.model,
        prompt_tokens=sum(len(text.split()) for text in texts),
        fault=plan.fault_for(number, "\n".join(texts)),
        arrived=arrived,
        texts=texts,
        dimensions=size or plan.dimensions,
        packed=kind == "base64",
    )


def _inputs(given: Any) -> list[str]:
    """A text, a list of texts, token ids, or a list of such lists."""
    match given:
        case str():
            return [given]
        case [int(), *_]:
            return [" ".join(map(str, given))]
        case [_, *_] if all(isinstance(one, str) or (isinstance(one, list) and one) for one in given):
            return [one if isinstance(one, str) else " ".join(map(str, one)) for one in given]
    raise RefusalError(400, "input: Input should be a valid string or list", param="input")


def vector(text: str, dimensions: int) -> list[float]:
    """The text's own direction: the first `dimensions` of an endless row of numbers, brought to length 1."""
    numbers = random.Random(text)
    row = [numbers.gauss() for _ in range(dimensions)]
    length = math.hypot(*row)
    return [value / length for value in row]


def _packed(row: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
