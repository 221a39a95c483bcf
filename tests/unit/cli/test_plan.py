"""`tieryard plan` as a user meets it: lines that add up, in 80 columns, and one sentence for what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import constants
from typer.testing import CliRunner

from tieryard.cli.main import cli
from tieryard.errors import UserError

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
Ask = Callable[..., Result]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Runs the command without a hub, in a terminal of 80 columns."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def run(*words: str, columns: int = 80) -> Result:
        return CliRunner().invoke(cli, ["plan", *words], env={"COLUMNS": str(columns)})

    return run


def refused(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_that_fits(ask: Ask, columns: int) -> None:
    result = ask(LLAMA_8B, "--gpu", "A10G", "--rent", "1.80", "--throughput", "500", columns=columns)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.output.splitlines()]
    table = [line for line in lines if line.startswith(("A10G", "×", "–", "=")) and "notes" not in line][:7]
    figures = [float(line.split("  ")[-2].split()[-1]) for line in table]
    assert figures[1] - sum(figures[2:6]) == pytest.approx(figures[6], abs=0.03)
    assert "14.96" in table[2]
    assert any(line.startswith("cost per 1k tokens") and "0.001000" in line for line in lines)
    assert any(line.startswith(f"vllm serve {LLAMA_8B} --max-model-len") for line in lines)
    assert "  kind: vllm_server" in lines
    assert "shapes that ship with tieryard, since HF_HUB_OFFLINE is set" in result.output
    assert "does not make a" in result.output
    tables = [line for line in lines if "vllm serve" not in line and "flags:" not in line and "shape from" not in line]
    assert max(map(len, tables)) <= columns


def test_the_pages_example_is_what_is_printed(ask: Ask) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "plan.md").read_text(encoding="utf-8")
    found = re.search(r"```sh\nHF_HUB_OFFLINE=1 tieryard plan (.*?)\n```\n\n```text\n(.*?)\n```", page, re.DOTALL)
    assert found
    printed = [line.rstrip() for line in ask(*found[1].split()).output.splitlines()]
    assert printed == found[2].splitlines()


def test_the_plan_as_json(ask: Ask) -> None:
    result = ask(LLAMA_8B, "--gpu", "l40s", "--rent", "2", "--throughput", "1000", "--tensor-parallel", "2", "--json")
    made = json.loads(result.output)
    assert (made["fits"], made["gpu"], made["tensor_parallel"], made["parameters"]) == (True, "L40S", 2, 8_030_261_248)
    assert made["rent_usd_per_h"] == "4"
    assert made["cost_usd_per_1k"].startswith("0.00111111")
    parts = made["bytes_on_each_gpu"]
    spent = sum(parts[name] for name in ("weights", "activations", "graphs", "other"))
    assert parts["usable"] - spent == made["kv_bytes_on_each_gpu"]
    assert made["flags"]["tensor_parallel_size"] == 2


def test_all_gpus_in_one_table(ask: Ask) -> None:
    result = ask("meta-llama/Llama-3.1-70B-Instruct", "--gpu", "all")
    assert result.exit_code == 0
    rows = {words[0]: words[1] for words in map(str.split, result.output.splitlines()) if len(words) == 7}
    assert {name: rows[name] for name in ("A10G", "L40S", "A100-80", "H200")} == {
        "A10G": "8",
        "L40S": "4",
        "A100-80": "2",
        "H200": "2",
    }
    assert len(json.loads(ask(LLAMA_8B, "--gpu", "all", "--json").output)) == 6


def test_what_does_not_fit_says_what_would(ask: Ask) -> None:
    result = ask("meta-llama/Llama-3.1-70B-Instruct", "--gpu", "A100-80", "--tensor-parallel", "1")
    assert result.exit_code == 1
    assert "GiB are missing on each GPU before any KV cache" in result.output
    assert "fits: 2 × A100-80" in result.output
    assert "vllm serve" not in result.output


def test_a_request_that_is_too_long(ask: Ask) -> None:
    result = ask(LLAMA_8B, "--gpu", "A10G", "--max-model-len", "100000", "--tensor-parallel", "1")
    assert result.exit_code == 1
    assert "a request of 100,000 tokens does not fit" in result.output


def test_heads_that_do_not_divide(ask: Ask) -> None:
    result = ask("HuggingFaceTB/SmolLM2-135M", "--gpu", "A10G", "--tensor-parallel", "2")
    assert result.exit_code == 1
    assert "vLLM refuses 2 GPUs: 9 attention heads do not divide by 2" in result.output


def test_kv_memory_of_a_cpu(ask: Ask) -> None:
    words = ("--kv-memory", "1", "--block-size", "128", "--max-model-len", "2048")
    result = ask("HuggingFaceTB/SmolLM2-135M-Instruct", *words)
    assert result.exit_code == 0
    assert "23,040 bytes a token: 46,592 tokens" in " ".join(result.output.split())
    assert "22.75 such requests at once" in result.output
    assert "--kv-cache-memory-bytes 1073741824" in result.output


def test_no_kv_memory_holds_nothing(ask: Ask) -> None:
    result = ask(LLAMA_8B, "--kv-memory", "0")
    assert result.exit_code == 1
    assert "a request of 4,096 tokens does not fit: the KV cache holds 0" in result.output


def test_a_checkpoint_that_must_be_made_first_is_said(ask: Ask) -> None:
    output = " ".join(ask(LLAMA_8B, "--gpu", "A10G", "--quantization", "awq").output.split())
    assert f"vllm serve '<awq checkpoint of {LLAMA_8B}>' --max-model-len" in output
    assert f"{LLAMA_8B} is not stored so: fill in the name of the awq checkpoint" in output
    for served in ("fp8", "none"):
        output = ask(LLAMA_8B, "--gpu", "A10G", "--quantization", served).output
        assert f"vllm serve {LLAMA_8B} --max-model-len" in output
        assert "is not stored so" not in output
        assert ("--quantization fp8" in output) == (served == "fp8")


def test_what_bounds_the_requests_in_flight_is_said(ask: Ask) -> None:
    output = ask("HuggingFaceTB/SmolLM2-135M", "--gpu", "A10G", "--context", "64").output
    assert "max_num_seqs (256), not memory, bounds max_in_flight" in " ".join(output.split())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((LLAMA_8B,), "name a GPU with --gpu"),
        ((LLAMA_8B, "--gpu", "A10G", "--kv-memory", "1"), "name a GPU with --gpu"),
        ((LLAMA_8B, "--gpu", "A10"), "no GPU 'A10'"),
        ((LLAMA_8B, "--gpu", "A10G", "--quantization", "q5"), "'q5' is none of"),
        (("Qwen/Qwen2.5-7B-Instruct-AWQ", "--gpu", "A10G", "--quantization", "fp8"), "is awq already"),
        ((LLAMA_8B, "--gpu", "A10G", "--kv-cache-dtype", "int3"), "'int3' is none of"),
        ((LLAMA_8B, "--gpu", "A10G", "--gpu-memory-utilization", "2"), "above 0 and at most 1"),
        ((LLAMA_8B, "--gpu", "all", "--rent", "1"), "give a single --gpu"),
        ((LLAMA_8B, "--gpu", "A10G", "--throughput", "900"), "give the rent too"),
        ((LLAMA_8B, "--gpu", "A10G", "--max-num-seqs", "4096"), "which vLLM refuses"),
        ((LLAMA_8B, "--gpu", f"{'9' * 400}GiB"), "no GPU"),
        (("acme/tiny", "--gpu", "A10G"), "HF_HUB_OFFLINE is set"),
        (("nowhere", "--gpu", "A10G"), "no hub name"),
    ],
)
def test_what_is_wrong_is_one_sentence(ask: Ask, words: tuple[str, ...], why: str) -> None:
    assert why in refused(ask(*words))


@pytest.mark.parametrize("size", ["inf", "nan", "-1", "much"])
def test_kv_memory_is_a_size(ask: Ask, size: str) -> None:
    assert ask(LLAMA_8B, "--kv-memory", size).exit_code == 2


def test_nothing_is_cut_in_80_columns(ask: Ask) -> None:
    """With the widest figures that the table of all GPUs can have here."""
    words = ("HuggingFaceTB/SmolLM2-135M", "--gpu", "all", "--context", "1", "--kv-cache-dtype", "fp8")
    narrow, wide = (ask(*words, columns=columns).output.partition("\n\n")[2] for columns in (80, 200))
    assert max(map(len, narrow.splitlines())) <= 80
    cells = {word for line in wide.splitlines() for word in line.split()}
    assert cells <= {word for line in narrow.splitlines() for word in line.split()}


@pytest.mark.parametrize("money", ["free", "-1", "0", "NaN"])
def test_money_is_a_number_above_nothing(ask: Ask, money: str) -> None:
    assert ask(LLAMA_8B, "--gpu", "A10G", "--rent", money).exit_code == 2
