"""A fleet without a ledger: `python -m tests.benchmarks.unledgered MODULE ARGUMENT…` runs a process of the fleet from
which this benchmark takes what the ledger adds to a job's way. Nothing of the fleet has such a switch."""

from __future__ import annotations

import re
import runpy
import sys
from typing import Any

import tieryard.endings
from tieryard.catalog import Catalog
from tieryard.store import budgets, finish
from tieryard.store.budgeted import Budgeted
from tieryard.supervisor import Fleet

_PART = re.compile(r"(?m)^(?:WITH |\), )(?=\w+ AS (?:MATERIALIZED )?\()")
_OF_LEDGER = re.compile(r"INSERT INTO ledger|FROM rent_window|JOIN held")


def without_ledger(statement: str) -> str:
    """The same statement without the parts that read windows or post."""
    head, *parts = _PART.split(statement)
    kept = [part for part in parts if not _OF_LEDGER.search(part)]
    if head.strip() or len(parts) - len(kept) < 3 or "ledger" in "".join(kept):
        raise SystemExit("the finishing statement has another shape now: let tests/benchmarks/unledgered.py know it")
    return "WITH " + "), ".join(kept)


def leave_out() -> None:
    """In this process: nothing is charged, compared, posted or reserved."""
    finish._FINISH = without_ledger(finish._FINISH)
    finish._HAND_BACK = without_ledger(finish._HAND_BACK)
    nothing = tieryard.endings._Bill()

    def no_bill(*_: Any, **__: Any) -> Any:
        return nothing

    def not_bound(*_: Any, **__: Any) -> bool:
        return False

    def nothing_settled(*_: Any, **__: Any) -> list[Any]:
        return []

    _replace(tieryard.endings.Endings, "_bill", no_bill)
    _replace(Budgeted, "binds", not_bound)
    _replace(budgets, "settle", nothing_settled)


def _replace(of: object, name: str, by: object) -> None:
    if not hasattr(of, name):
        raise SystemExit(f"{of} has no {name} any more: let tests/benchmarks/unledgered.py know what took its place")
    setattr(of, name, by)


class UnledgeredFleet(Fleet):
    """All of whose processes are without it."""

    def _commands(self, catalog: Catalog) -> dict[str, list[str]]:
        commands = super()._commands(catalog)
        return {name: self._through_here(command) for name, command in commands.items()}

    @staticmethod
    def _through_here(command: list[str]) -> list[str]:
        python, dash_m, *rest = command
        return [python, dash_m, "tests.benchmarks.unledgered", *rest]


if __name__ == "__main__":
    leave_out()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
