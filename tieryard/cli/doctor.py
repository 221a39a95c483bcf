"""`tieryard doctor`: is this machine, and this fleet, in order?"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.console import Console
from rich.text import Text

from tieryard.cli.client import DEFAULT_URL, UrlOption, checked_url, key_headers
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.tables import table
from tieryard.errors import StoreError, UserError
from tieryard.store import lanes, workers
from tieryard.supervisor import missing_parts

_FREE_GB = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it when it is not in order."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def doctor(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, data_dir: DataDirOption = None) -> None:
    """Checks Python, the embedded parts, the disk, the key, every part of the fleet that `/readyz` looks at, and
    whether all processes go by the newest catalog; where it may ask the database, also which do not, and why."""
    findings = [*machine(), *fleet(checked_url(url), data_dir)]
    if as_json:
        print_json(findings)
    else:
        good, bad = Text("ok", style="green"), Text("!!", style="red")
        rows = [(good if f.ok else bad, f.name, f.found, "" if f.ok else f.advice) for f in findings]
        Console().print(table(("", "check", "found", "what to do"), rows, folds=("found", "what to do")))
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


def machine() -> list[Finding]:
    missing = missing_parts()
    free_gb = shutil.disk_usage(".").free / 1e9
    return [
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python 3.11 or newer"),
        Finding(
            "embedded parts",
            not missing,
            f"missing: {', '.join(missing)}" if missing else "installed",
            "pip install 'tieryard[local]' (only `tieryard up` needs them)",
        ),
        Finding("disk", free_gb > _FREE_GB, f"{free_gb:.0f} GB free here", f"free at least {_FREE_GB} GB"),
    ]


def fleet(url: str, data_dir: Path | None = None) -> list[Finding]:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        return [Finding("fleet", False, f"{url}: {error}", "start it: tieryard up")]  # noqa: FBT003
    try:
        said = answer.json()
        checks: dict[str, str] = dict(said["checks"])
    except (ValueError, KeyError, TypeError):
        found = f"{url} answers HTTP {answer.status_code}, but not as a fleet does"
        return [Finding("fleet", False, found, "set TIERYARD_URL, or --url, to the fleet's API")]  # noqa: FBT003
    parts = [
        Finding(name, value == "ok", value, "see its log: DATA_DIR/logs, or docker compose logs")
        for name, value in checks.items()
    ]
    catalog = said.get("catalog")
    return [*parts, *([_catalog(catalog, data_dir)] if catalog else []), *_callbacks(data_dir), _key(url)]


def _catalog(said: dict[str, Any], data_dir: Path | None) -> Finding:
    """`/readyz` needs no key, so it leaves out which process it is, and what keeps it; the database has both."""
    advice = "`tieryard deployments` says why; mend that, or `tieryard config rollback` to a version that works"
    try:
        with database(data_dir) as store:
            found = workers.followers(store)
    except (UserError, StoreError):
        return Finding("catalog", not said["unable"], said["found"], advice)
    return Finding("catalog", not found.unable, found.told(), advice)


def _callbacks(data_dir: Path | None) -> list[Finding]:
    """What callbacks are owed; only the database knows. That a receiver fails is its owner's matter, that nobody
    delivers is the operator's."""
    try:
        with database(data_dir) as store, store.transaction() as connection:
            owing, served = lanes.owing(connection), workers.any_lives(connection, "callback")
    except (UserError, StoreError):
        return []
    found = "nothing owed"
    if owing.owed:
        found = f"{owing.owed:,} owed, the oldest for {owing.oldest_s:,.0f} s"
    if owing.failing_lanes:
        found += f"; {owing.failing_lanes:,} receivers fail"
    if owing.disabled_endpoints:
        found += f"; {owing.disabled_endpoints:,} endpoints disabled"
    advice = "no callback worker runs: see DATA_DIR/logs, or docker compose logs callback"
    return [Finding("callbacks", served or not owing.owed, found, advice)]


def _key(url: str) -> Finding:
    """Whether this fleet knows the key, by a question that any key may ask."""
    try:
        answer = httpx.get(f"{url}/v1/models", headers=key_headers(), timeout=10, trust_env=False)
    except (UserError, httpx.HTTPError) as error:
        return Finding("API key", False, str(error), "export TIERYARD_API_KEY; new ones: tieryard keys create")  # noqa: FBT003
    if answer.status_code == 401:
        found = "this fleet does not know TIERYARD_API_KEY, or it was revoked"
        return Finding("API key", False, found, "make one: tieryard keys create NAME")  # noqa: FBT003
    found = "works" if answer.is_success else f"could not be tried: HTTP {answer.status_code}"
    return Finding("API key", answer.is_success, found, "mend what is above first")
