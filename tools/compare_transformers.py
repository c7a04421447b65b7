#!/usr/bin/env python3
"""Training speed of transformers' RecurrentGemma with the quickstart's shape, on the CPU, in float32.

Needs PyTorch and transformers. Prints tokens per second: the median step after two warm-up steps,
forward, backward, gradient clipping and AdamW. The same architecture in Eyrie (transformers ties
the number of gate blocks to that of heads, and always caps logits):

  eyrie train --config configs/quickstart.textproto --set model.recurrent.gate_blocks=4 \\
    --set model.logit_soft_cap=30 --set data.packing=CONTINUOUS --set run.threads=N ...
"""
import argparse
import statistics
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batch", type=int, default=16, help="sequences a step")
parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
parser.add_argument("--steps", type=int, default=8)
options = parser.parse_args()

# Slow to load, and not needed for --help.
try:
    import torch
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
except ImportError:
    parser.error("needs PyTorch and transformers: pip install torch transformers")

torch.set_num_threads(options.threads)
torch.manual_seed(0)
model = RecurrentGemmaForCausalLM(
    RecurrentGemmaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=2 * 576,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=48,
        lru_width=256,
        attention_window_size=128,
        block_types=["recurrent", "recurrent", "attention"],
        use_cache=False,
    )
).float()
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
seconds = []
for step in range(options.steps):
    tokens = torch.randint(0, 2048, (options.batch, options.length))
    start = time.perf_counter()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - start)
median = statistics.median(seconds[2:])
parameters = sum(p.numel() for p in model.parameters())
print(f"{parameters} parameters, {options.threads} threads: {options.batch * options.length / median:.0f} tokens/s")
