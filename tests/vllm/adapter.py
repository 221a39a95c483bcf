"""Makes a LoRA adapter of random numbers for a model's directory: what it answers is not the model's own any more.

Run with vLLM's own interpreter: `python tests/vllm/adapter.py MODEL_DIRECTORY DIRECTORY`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

_RANK = 8


def make(model: Path, out: Path) -> None:
    """On the query and output projections of every layer, whose shapes are hidden × hidden."""
    config = json.loads((model / "config.json").read_text())
    hidden, targets = config["hidden_size"], ["q_proj", "o_proj"]
    torch.manual_seed(0)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{name}.lora_A.weight"] = torch.randn(_RANK, hidden, dtype=torch.bfloat16) * 0.05
            weights[f"{name}.lora_B.weight"] = torch.randn(hidden, _RANK, dtype=torch.bfloat16) * 0.05
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": _RANK,
        "lora_alpha": 2 * _RANK,
        "target_modules": targets,
    }
    (out / "adapter_config.json").write_text(json.dumps(about))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
