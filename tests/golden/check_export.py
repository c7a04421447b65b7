#!/usr/bin/env python3
"""Checks that a folder written by `eyrie checkpoint export` loads in transformers and gives the
logits that `eyrie logits` gives for the checkpoint. By hand: CI has no transformers.

Needs torch, transformers, safetensors and a built eyrie:

    build/eyrie checkpoint export CHECKPOINT --output FOLDER
    tests/golden/check_export.py --eyrie build/eyrie CHECKPOINT FOLDER

Prints the largest difference, and fails above 1e-4 or if a tensor is missing or unexpected.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

# transformers would take the folder xlstm beside this file for the package of that name.
sys.path.pop(0)

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--eyrie", default="build/eyrie")
    parser.add_argument("--length", type=int, default=32,
                        help="tokens, at most the attention window")
    arguments = parser.parse_args()

    model, report = AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    model.eval()
    length = min(arguments.length,
                 getattr(model.config, "attention_window_size", arguments.length))
    torch.manual_seed(2)
    tokens = torch.randint(0, model.config.vocab_size, (length,))
    expected = model(tokens[None], use_cache=False).logits[0]

    with tempfile.TemporaryDirectory() as directory:
        output = pathlib.Path(directory) / "logits.safetensors"
        subprocess.run([arguments.eyrie, "logits", "--checkpoint", arguments.checkpoint, "--tokens",
                        " ".join(str(int(token)) for token in tokens), "--output", output],
                       check=True)
        logits = load_file(output)["logits"]

    difference = (logits - expected).abs().max().item()
    print(f"{length} tokens, logits of deviation {expected.std().item():.3f}, "
          f"largest difference {difference:.2e}")
    assert difference < 1e-4


if __name__ == "__main__":
    main()
