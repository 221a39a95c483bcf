"""Makes the model that real vLLM serves in the tests: llama.cpp's SmolLM2, as a Hugging Face directory.

Run by `make setup-vllm` with vLLM's own interpreter: `python tests/vllm/weights.py FILE.gguf DIRECTORY`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(gguf: Path, out: Path) -> None:
    """Takes the quantization out of the weights: 16 bits each, as vLLM wants them. `out` is there when it is whole."""
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model.hf_quantizer = None  # else it is saved as the GGUF that it came from
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    half = out.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    model.save_pretrained(half)
    tokenizer.save_pretrained(half)
    shutil.rmtree(out, ignore_errors=True)
    half.rename(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
