"""What a decision depends on of the job itself, and all that is kept of its prompt."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from typing import Any, Self

from tieryard.catalog import SizeClass
from tieryard.routing.features import TextFeatures
from tieryard.routing.snapshot import Bounds

AUTO = "auto"
CLASS_PREFIX = "class:"


@dataclass(frozen=True, slots=True)
class JobFeatures:
    """`prompt_tokens` is by tokenizer. `bounds` is the job's own SLO, `max_cost_usd` what it may cost at worst,
    `policy` the tenant whose policy holds. `waited_s` is the time since its acceptance, `due_in_s` that to its
    deadline. `hardness` is the learned model's word on the prompt: how far it lowers the log-odds of a good answer
    below the usual, and `predicted` its quality by model where it knows the model. `sticky` is the deployment that has
    its beginning cached. `attended`: its caller waits on a connection, so it is never put off. `draw`, 0 to 1, is the
    job's own chance, the same each time."""

    text: TextFeatures
    model: str
    prompt_tokens: dict[str, int]
    max_tokens: int
    needs: frozenset[str] = frozenset()
    endpoint: str = "/v1/chat/completions"
    tier: str = ""
    bounds: Bounds | None = None
    max_cost_usd: Decimal | None = None
    policy: str = ""
    waited_s: float = 0.0
    due_in_s: float | None = None
    hardness: float | None = None
    predicted: dict[str, float] = field(default_factory=dict)
    sticky: str = ""
    attended: bool = False
    draw: float = 0.0

    def stored(self) -> dict[str, Any]:
        """Without what is as usual: there is one of these a job."""
        known = {f.name: (getattr(self, f.name), f) for f in fields(self)}
        return {name: value for name, (value, f) in known.items() if value != _usual(f)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        text = {**stored["text"], "wanted": SizeClass(stored["text"]["wanted"])}
        bounds, cap = stored.get("bounds"), stored.get("max_cost_usd")
        read = {
            "text": TextFeatures(**text),
            "needs": frozenset(stored.get("needs", ())),
            "bounds": None if bounds is None else Bounds.from_dict(bounds),
            "max_cost_usd": None if cap is None else Decimal(cap),
        }
        return cls(**{**stored, **read})

    @property
    def pinned(self) -> bool:
        """Whether it names a deployment."""
        return self.model != AUTO and not self.model.startswith(CLASS_PREFIX)

    def chance(self, of: int) -> float:
        """A number from 0 to 1 for one purpose (a prime), the same for this job each time."""
        return (self.draw * of) % 1.0


def _usual(known: Field[Any]) -> Any:
    return known.default_factory() if known.default_factory is not MISSING else known.default
