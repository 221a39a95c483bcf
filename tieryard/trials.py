"""How deciders hear of promotions and canaries: through Redis, told again and again by whoever watches them.

Without Redis nothing is promoted, until it is told anew. A canary is forgotten when nobody tells of it for a while:
for then nobody watches it either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import redis

from tieryard.routing import plain
from tieryard.routing.trials import Canary, Promotion, Trials

_PROMOTIONS, _CANARIES = "promotions", "canaries"
_UNWATCHED_MS = 30_000


def publish(client: redis.Redis, trials: Trials) -> None:
    """All that is in force; what was told before is forgotten. Raises redis.RedisError."""
    with client.pipeline() as pipe:
        pipe.set(_PROMOTIONS, orjson.dumps(trials.promotions, default=plain))
        pipe.set(_CANARIES, orjson.dumps(trials.canaries, default=plain), px=_UNWATCHED_MS)
        pipe.execute()


def ask(pipe: Any) -> None:
    """Has a pipeline read them, for `read`: one answer."""
    pipe.mget(_PROMOTIONS, _CANARIES)


def read(answer: Sequence[bytes | None]) -> Trials:
    """From the answer that `ask` has brought."""
    promotions, canaries = (orjson.loads(told or b"[]") for told in answer)
    return Trials(tuple(map(Promotion.from_dict, promotions)), tuple(map(Canary.from_dict, canaries)))
