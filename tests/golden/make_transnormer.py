#!/usr/bin/env python3
"""Writes tests/golden/transnormer/small.safetensors: a tiny TransNormerLLM and its logits.

Written from the equations of "TransNormerLLM" (arXiv:2307.14995), with the decays of the released
models, one token after another in float64; it shares nothing with Eyrie. Needs NumPy (2.4.6 was
used):

    tests/golden/make_transnormer.py

The file holds the parameters under Eyrie's names in float32, "tokens" [T] int32 and "logits"
[T, vocab] float32. tests/layers/golden_test.cc has the configuration.
"""

import json
import pathlib
import struct

import numpy as np

OUTPUT = pathlib.Path(__file__).parent / "transnormer" / "small.safetensors"

VOCAB, WIDTH, DEPTH, HEADS, HEAD_WIDTH, HIDDEN, TOKENS = 50, 24, 3, 3, 8, 40, 90
EPSILON = 1e-6


def draw(random):
    """Every parameter at random, in float32."""
    inner = HEADS * HEAD_WIDTH
    shapes = {"tok.w": (VOCAB, WIDTH)}
    for block in range(DEPTH):
        prefix = f"blocks.{block}."
        for name in ("q", "k", "v", "gate"):
            shapes[prefix + f"light.{name}.w"] = (inner, WIDTH)
        shapes[prefix + "light.out.w"] = (WIDTH, inner)
        shapes[prefix + "mlp.gate.w"] = (HIDDEN, WIDTH)
        shapes[prefix + "mlp.up.w"] = (HIDDEN, WIDTH)
        shapes[prefix + "mlp.down.w"] = (WIDTH, HIDDEN)
    parameters = {name: random.normal(0.0, shape[1] ** -0.5, shape).astype(np.float32)
                  for name, shape in shapes.items()}
    parameters["blocks.0.light.theta"] = random.uniform(
        0.0, 1.0, (HEADS, HEAD_WIDTH)).astype(np.float32)
    return parameters


def norm(x):
    return x / np.sqrt(np.mean(x * x) + EPSILON)


def silu(x):
    return x / (1.0 + np.exp(-x))


def slopes():
    """ALiBi's for three heads: both of two heads, then the first of four."""
    return [2.0 ** -4, 2.0 ** -8, 2.0 ** -2]


def attention(x, weights, block, state, position):
    """One token through the gated linear attention of a block; `state` [H, dk, dv] changes."""
    outputs = []
    q, k, v = (weights[f"light.{name}.w"] @ x for name in ("q", "k", "v"))
    for head in range(HEADS):
        part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        query, key = silu(q[part]), silu(k[part])
        if block == 0:
            angle = position * weights["light.theta"][head]
            query, key = (np.concatenate([y * np.cos(angle), y * np.sin(angle)])
                          for y in (query, key))
        rate = slopes()[head] * (1.0 - block / (DEPTH - 1) + 1e-5)
        state[head] = np.exp(-rate) * state[head] + np.outer(key, v[part])
        outputs.append(query @ state[head])
    gate = weights["light.gate.w"] @ x
    return weights["light.out.w"] @ (gate * norm(np.concatenate(outputs)))


def mlp(x, weights):
    return weights["mlp.down.w"] @ ((weights["mlp.gate.w"] @ x) * (weights["mlp.up.w"] @ x))


def logits_of(parameters, tokens):
    parameters = {name: value.astype(np.float64) for name, value in parameters.items()}
    states = [[np.zeros((HEAD_WIDTH * (2 if block == 0 else 1), HEAD_WIDTH)) for _ in range(HEADS)]
              for block in range(DEPTH)]
    rows = []
    for position, token in enumerate(tokens):
        x = np.sqrt(WIDTH) * parameters["tok.w"][token]
        for block in range(DEPTH):
            prefix = f"blocks.{block}."
            weights = {name.removeprefix(prefix): value for name, value in parameters.items()
                       if name.startswith(prefix)}
            x = x + attention(norm(x), weights, block, states[block], position)
            x = x + mlp(norm(x), weights)
        rows.append(parameters["tok.w"] @ norm(x))
    return np.array(rows)


def write(path, tensors):
    names = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": names[tensor.dtype], "shape": tensor.shape,
                        "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


def main():
    random = np.random.default_rng(1)
    parameters = draw(random)
    tokens = random.integers(0, VOCAB, TOKENS).astype(np.int32)
    logits = logits_of(parameters, tokens)
    write(OUTPUT, parameters | {"tokens": tokens, "logits": logits.astype(np.float32)})
    print(f"logits from {logits.min():.3f} to {logits.max():.3f}, deviation {logits.std():.3f}")


if __name__ == "__main__":
    main()
