#!/usr/bin/env python3
"""Writes tests/golden/xlstm/: tiny models of xLSTM 7B's architecture and the logits that
transformers gives.

Needs torch (2.15.0 was used; the CPU is enough), transformers (5.23.0) and safetensors, but not the
package xlstm:

    tests/golden/make_xlstm.py

For each model, NAME/ is what save_pretrained writes, and NAME.expected.safetensors holds "tokens"
[T] int32 and "logits" [T, vocab] float32 of one forward pass in float32 without a cache. There are
fewer tokens than chunk_size, so that transformers computes the cell one token after another.
"""

import pathlib
import sys

import golden_models

# transformers would take the folder xlstm beside this file for the package of that name.
sys.path.pop(0)

from transformers import xLSTMConfig, xLSTMForCausalLM

OUTPUT = pathlib.Path(__file__).parent / "xlstm"

# Name: tokens, the largest file of the folder, configuration.
MODELS = {
    # As released, but for the sizes.
    "small": (40, "1GB", dict(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_heads=2)),
    # Nothing as released, in several files.
    "wide": (24, "40KB", dict(
        vocab_size=50, hidden_size=24, num_hidden_layers=4, num_heads=6, qk_dim_factor=0.75,
        v_dim_factor=1.5, ffn_proj_factor=2.5, ffn_round_up_to_multiple_of=4, norm_eps=1e-3,
        gate_soft_cap=5.0, output_logit_soft_cap=4.0)),
}


def draw(name, parameter):
    if "norm" in name:
        # Eyrie keeps the difference from one, which is exact here.
        parameter.uniform_(0.5, 1.5)
    elif name.endswith("fgate_preact.bias"):
        parameter.uniform_(-1.0, 6.0)
    elif name.endswith("bias"):
        parameter.normal_(0.0, 2.0)
    elif "embeddings" in name:
        parameter.normal_(0.0, 0.3)
    elif "lm_head" in name:
        parameter.normal_(0.0, 0.5)
    else:
        parameter.normal_(0.0, parameter.shape[1] ** -0.5)


def build(settings):
    model = xLSTMForCausalLM(xLSTMConfig(**settings))
    assert all(length < model.config.chunk_size for length, *_ in MODELS.values())
    return model


if __name__ == "__main__":
    golden_models.write(OUTPUT, MODELS, build, draw)
