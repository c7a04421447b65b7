#!/usr/bin/env python3
"""Writes tests/golden/recurrent_gemma/: tiny RecurrentGemmas and the logits that transformers gives.

Needs torch (2.15.0 was used; the CPU is enough), transformers (5.23.0) and safetensors:

    tests/golden/make_recurrent_gemma.py

For each model, NAME/ is what save_pretrained writes, and NAME.expected.safetensors holds "tokens"
[T] int32 and "logits" [T, vocab] float32 of one forward pass in float32 without a cache. A model
is compared only for T within its attention window, because transformers counts the token itself
among the window's keys and Eyrie does not; and never through the cache, whose convolution state has
hidden_size channels where lru_width are needed.
"""

import pathlib

import golden_models
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

OUTPUT = pathlib.Path(__file__).parent / "recurrent_gemma"

# Name: tokens, the largest file of the folder, configuration.
MODELS = {
    # As released, but for the sizes.
    "small": (24, "1GB", dict(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=192, attention_window_size=32)),
    # Nothing as released, in several files. The pattern does not divide the depth.
    "wide": (16, "60KB", dict(
        vocab_size=50, hidden_size=24, num_hidden_layers=5, num_attention_heads=2, lru_width=40,
        intermediate_size=80, attention_window_size=16, logits_soft_cap=5.0, rms_norm_eps=1e-3,
        block_types=["attention", "recurrent", "recurrent"],
        rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5))),
}


def draw(name, parameter):
    if name.endswith("recurrent_param"):
        parameter.uniform_(-4.0, 1.0)  # half-lives from less than one token to hundreds
    elif name.endswith("norm.weight"):
        parameter.normal_(0.0, 0.3)
    elif name.endswith("bias"):
        parameter.normal_(0.0, 0.5)
    elif "embed_tokens" in name:
        parameter.normal_(0.0, 0.3)
    elif "conv_1d" in name:
        parameter.normal_(0.0, 0.5)
    elif "gate_weight" in name:  # [G, in, out]
        parameter.normal_(0.0, 2.0 * parameter.shape[1] ** -0.5)
    else:
        parameter.normal_(0.0, parameter.shape[1] ** -0.5)


def build(settings):
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(num_key_value_heads=1, **settings))


if __name__ == "__main__":
    golden_models.write(OUTPUT, MODELS, build, draw)
