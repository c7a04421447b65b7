#!/usr/bin/env python3
"""Writes tests/golden/mamba/: tiny Mambas and the logits that transformers gives.

Needs torch (2.15.0 was used; the CPU is enough), transformers (5.23.0) and safetensors:

    tests/golden/make_mamba.py

For each model, NAME/ is what save_pretrained writes, and NAME.expected.safetensors holds "tokens"
[T] int32 and "logits" [T, vocab] float32 of one forward pass in float32 without a cache.
"""

import pathlib

import golden_models
from transformers import MambaConfig, MambaForCausalLM

OUTPUT = pathlib.Path(__file__).parent / "mamba"

# Name: tokens, the largest file of the folder, configuration.
MODELS = {
    # As released, but for the sizes.
    "small": (40, "1GB", dict(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, time_step_rank=2)),
    # Nothing as released, in several files.
    "wide": (24, "40KB", dict(
        vocab_size=50, hidden_size=24, num_hidden_layers=4, state_size=5, expand=3,
        time_step_rank=7, layer_norm_epsilon=1e-3)),
}


def draw(name, parameter):
    if "norm" in name:
        # Eyrie keeps the difference from one, which is exact here.
        parameter.uniform_(0.5, 1.5)
    elif name.endswith("dt_proj.bias"):
        parameter.uniform_(-4.0, 0.0)
    elif name.endswith("A_log"):
        parameter.uniform_(-2.0, 2.0)
    elif name.endswith(".D"):
        parameter.normal_(0.0, 1.0)
    elif name.endswith("bias"):
        parameter.normal_(0.0, 0.5)
    elif "embeddings" in name:
        parameter.normal_(0.0, 0.3)
    elif "conv1d" in name:
        parameter.normal_(0.0, 0.5)
    else:
        parameter.normal_(0.0, parameter.shape[1] ** -0.5)


def build(settings):
    return MambaForCausalLM(MambaConfig(**settings))


if __name__ == "__main__":
    golden_models.write(OUTPUT, MODELS, build, draw)
