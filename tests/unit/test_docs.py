"""The reference pages say what the code has: no field, setting, event, route or command more or less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from api.app import create_app
from api.prometheus import Scrape
from tieryard import catalog, errors
from tieryard.catalog import parse_catalog
from tieryard.catalog.base import Strict
from tieryard.cli.main import cli
from tieryard.events import Told
from tieryard.metrics import Gauge, Live
from tieryard.requests import JobCreate
from tieryard.routing import Profile
from tieryard.settings import Settings
from tieryard.telemetry import Event
from workers.__main__ import cli as workers_cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
MODELS = {name: model for name, model in vars(catalog).items() if isinstance(model, type) and issubclass(model, Strict)}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under `## title`, up to the next heading of that rank."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section '## {title}'"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell, which is one `word`; the other cells as they stand."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| `[^`]+` \|", line)]
    assert len({cells[0] for cells in found}) == len(found), "a row stands twice"
    return {cells[0].strip("`"): cells[1:] for cells in found}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_catalogs_fields(name: str) -> None:
    documented = rows(section(page("reference/catalog.md"), name))
    model: type[BaseModel] = MODELS[name]
    assert documented.keys() == model.model_fields.keys()
    required = {field for field, info in model.model_fields.items() if info.is_required()}
    assert {field for field, cells in documented.items() if cells[0] == "required"} == required


def test_the_catalogs_example_is_a_catalog() -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", page("reference/catalog.md"), re.DOTALL)
    assert parse_catalog(example).deployments


def shown(info: FieldInfo) -> str:
    """A default as the settings page writes it."""
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        value = info.get_default(call_default_factory=True, validated_data={})
        return f"`{value}`".replace(str(Path.home()), "~")
    if isinstance(info.default, bool):
        return str(info.default).lower()
    if isinstance(info.default, float):
        return f"{info.default:g}"
    return str(info.default).lower()


def test_the_settings() -> None:
    documented = {name: cells[0] for name, cells in rows(page("reference/settings.md")).items()}
    assert documented == {f"TIERYARD_{name.upper()}": shown(info) for name, info in Settings.model_fields.items()}


def test_the_events() -> None:
    assert rows(page("reference/logging.md")).keys() == {str(event) for event in Event}


def test_what_webhooks_tell() -> None:
    assert list(rows(section(page("reference/webhooks.md"), "Events"))) == list(Told)


def test_the_figures() -> None:
    text = page("reference/metrics.md")
    assert rows(section(text, "Profiles")).keys() == {f.name for f in fields(Profile)}
    assert rows(section(text, "Gauges")).keys() == {f.name for f in fields(Gauge)}


def test_what_prometheus_is_shown() -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", page("reference/catalog.md"), re.DOTALL)
    shown = {f.name for f in Scrape(parse_catalog(example), Live({}, {}, {}), stepped_back=False).collect()}
    assert rows(section(page("reference/metrics.md"), "For Prometheus")).keys() == shown
    for name in ("how-to/production.md", "how-to/measure-models.md"):
        named = set(re.findall(r"\btieryard_(?:deployment|breaker|profile|benchmark|router)_\w+", page(name)))
        assert named, name
        assert named <= shown


@pytest.fixture(scope="module")
def paths() -> dict[str, dict[str, object]]:
    """The OpenAPI document's paths. Nothing is connected to: the application's parts are made when it starts."""
    nowhere = SecretStr("redis://127.0.0.1:1/0")
    found: dict[str, dict[str, object]] = create_app(
        Settings(database_url=nowhere, redis_url=nowhere, catalog=Path("none"))
    ).openapi()["paths"]
    return found


def test_the_routes(paths: dict[str, dict[str, object]]) -> None:
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^\| `([A-Z]+)` \| `(/[^`]*)` \|", page("reference/api.md"), re.MULTILINE)) == served


def test_a_jobs_fields() -> None:
    assert rows(section(page("reference/api.md"), "A job")).keys() == JobCreate.model_fields.keys()


def test_the_errors() -> None:
    text = section(page("reference/api.md"), "Errors")
    user = {c.code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.UserError)}
    for code in user - {errors.CatalogError.code}:
        assert f"`{code}`" in text
    raised = (errors.EngineDownError, errors.EngineTimeoutError, errors.ContextLengthError, errors.BadRequestError)
    for error in (errors.EngineError, *raised):
        assert f"`{error.kind}`" in text


def commands(command: Any, name: str) -> Iterator[str]:
    """Every command below this one, as it is typed, with its arguments."""
    inner = getattr(command, "commands", None)
    if inner is None:
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        yield " ".join([name, *(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments)])
        return
    for word, below in inner.items():
        yield from commands(below, f"{name} {word}")


def test_the_commands() -> None:
    documented = rows(page("reference/commands.md")).keys()
    [phony] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    typed = {f"make {target}" for target in phony.split()} | {"python -m api"}
    typed |= set(commands(typer.main.get_command(cli), "tieryard"))
    typed |= set(commands(typer.main.get_command(workers_cli), "python -m workers"))
    assert documented == typed


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    assert [target for target in targets if target and not (path.parent / target).exists()] == []


def test_every_decision_is_numbered_and_in_the_index() -> None:
    index = page("decisions/README.md")
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for path in DECISIONS:
        title, *rest = path.read_text(encoding="utf-8").splitlines()
        assert title.startswith(f"# {path.name[:4]}: ")
        assert f"[{path.name[:4]}]({path.name}) | {title[8:]} |" in index
        assert [line for line in rest if line.startswith("## ")] == ["## Context", "## Decision", "## Consequences"]


def test_the_glossary_is_in_order_and_points_at_what_exists() -> None:
    entries = re.findall(r"^\| ([^|]+) \| [^|]+ \| (?:`([^`]+)`|\[.*\)) \|$", page("glossary.md"), re.MULTILINE)
    words = [word.lower() for word, _ in entries if word != "word"]
    assert words == sorted(words)
    assert [where for _, where in entries if where and not (ROOT / where).exists()] == []
