#!/usr/bin/env python3
"""Eyrie's kernels and training steps beside those of other projects, in one run on one GPU.

Prints a Markdown table: each peer's median, Eyrie's, and how many times Eyrie is faster. The
peers are Python packages (docs/benchmarks.md names them), each measured in a process of its own;
one that is not installed is named in a line and left out. All is bfloat16 on random data, which
comes from main memory: before each timed call a buffer larger than the L2 cache is read, often
enough that the host has issued the call before the device comes to it. Training keeps float32
parameters and moments and computes in bfloat16 (autocast), with clipping and fused AdamW.

Exit status: 0; 2 for bad usage; 3 when a peer failed, or one that --only named is not installed.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import typing

# What `eyrie bench kernels --shape` takes for each kernel: sequences, tokens, channels.
SHAPES = {
    "mlstm": "4,8192,4096",  # 8 heads of 256 keys and 512 values
    "attention": "4,8192,4096",  # 32 heads of 128 that share their keys and values
    "lightning_attention": "4,8192,4096",  # 32 heads of 128
    "causal_conv1d": "4,8192,4096",
    "slstm": "16,1024,2048",  # 4 heads of 512
    "selective_scan": "4,8192,5120",  # 16 states a channel
    "rg_lru": "8,4096,4096",
}
# And `eyrie bench step`, for a step of 4 sequences of 4096 tokens.
SEQUENCES, LENGTH = 4, 4096
STEPS = {
    "Griffin 1.3B": ("configs/griffin/1.3b.textproto", "NOTHING"),
    "Hawk 1.3B": ("configs/hawk/1.3b.textproto", "NOTHING"),
    "Mamba 1.4B": ("configs/mamba/1.4b.textproto", "SELECTIVE"),
}


@dataclasses.dataclass
class Row:
    """One measurement of a peer, and what of Eyrie's it is compared with."""

    what: str
    eyrie: str  # a key of SHAPES or STEPS
    measure: str  # forward, backward or forward+backward, in ms; tokens/s; GB
    value: float


# What follows, up to PEERS, runs in the processes of the peers alone.


def median_ms(body, repeats=11):
    """The median time of body() on the device, after two calls that do not count."""
    import torch

    sweep = torch.zeros(2**26, device="cuda")  # 256 MiB
    times = []
    for repeat in range(repeats + 2):
        for _ in range(50):
            sweep.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        body()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def both_ways(what, eyrie, function, *inputs):
    """Rows of function(*inputs), a tensor, alone and with the gradients of all inputs."""
    import torch

    with torch.no_grad():
        gradient = torch.randn_like(function(*inputs))
        forward = median_ms(lambda: function(*inputs))
    yield Row(what, eyrie, "forward", forward)
    for tensor in inputs:
        tensor.requires_grad_()
    body = lambda: torch.autograd.grad(function(*inputs), inputs, gradient)
    yield Row(what, eyrie, "forward+backward", median_ms(body))


def random(*shape, full=False):
    """Normally distributed, in bfloat16 or float32."""
    import torch

    return torch.randn(shape, device="cuda", dtype=torch.float32 if full else torch.bfloat16)


def mlstm_kernels():
    from mlstm_kernels.torch.chunkwise.triton_limit_chunk import mlstm_chunkwise__limit_chunk
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk

    limit, xl = mlstm_chunkwise__limit_chunk, mlstm_chunkwise__xl_chunk
    for kernel, chunk in ((limit, 64), (xl, 128), (xl, 256)):
        name = kernel.__name__.removeprefix("mlstm_chunkwise__")
        yield from both_ways(
            f"mlstm_kernels {name}, chunks of {chunk}",
            "mlstm",
            lambda *inputs: kernel(*inputs, chunk_size=chunk),
            random(4, 8, 8192, 256),
            random(4, 8, 8192, 256),
            random(4, 8, 8192, 512),
            random(4, 8, 8192, full=True),
            random(4, 8, 8192, full=True) + 4,
        )


def sdpa():
    """Every head with keys and values of its own, which PyTorch's kernels are made for."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attention = torch.nn.functional.scaled_dot_product_attention
    causal = lambda *inputs: attention(*inputs, is_causal=True)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        what = f"PyTorch SDPA, causal, {backend.name}"
        inputs = [random(4, 32, 8192, 128) for _ in range(3)]
        with sdpa_kernel(backend):
            rows = list(both_ways(what, "attention", causal, *inputs))
        yield from rows
        yield from (dataclasses.replace(row, eyrie="mlstm") for row in rows)


def flashrnn():
    """In the kernel's own layouts, so that nothing is transposed. The package's Triton backend
    keeps the recurrent weights of a head in one block's shared memory, which cannot hold 512
    units."""
    from flashrnn import FlashRNNConfig, flashrnn

    config = FlashRNNConfig(
        batch_size=16,
        num_heads=4,
        head_dim=512,
        function="slstm",
        backend="cuda_fused",
        dtype="bfloat16",
        input_shape="TBHDG",
        recurrent_shape="HDGP",
        bias_shape="HDG",
        output_shape="STBHD",
    )
    yield from both_ways(
        "flashrnn, fused CUDA",
        "slstm",
        lambda x, r, b: flashrnn(x, r, b, config=config)[0],
        random(1024, 16, 4, 512, 4),
        random(4, 512, 4, 512) / 512**0.5,
        random(4, 512, 4),
    )


def selective_scan():
    import torch  # first: the extension needs its libraries

    import selective_scan_cuda

    channels = (4, 5120, 8192)
    u, delta, z = (random(*channels) for _ in range(3))
    a = -torch.arange(1.0, 17, device="cuda").repeat(5120, 1)
    b, c = (random(4, 1, 16, 8192) for _ in range(2))
    skip, bias = (random(5120, full=True) for _ in range(2))
    dout = random(*channels)
    forward = lambda: selective_scan_cuda.fwd(u, delta, a, b, c, skip, z, bias, True)
    out, states, _ = forward()
    backward = lambda: selective_scan_cuda.bwd(
        u, delta, a, b, c, skip, z, bias, dout, states, out, None, True, False
    )
    for measure, body in (("forward", forward), ("backward", backward)):
        yield Row("mamba_ssm selective scan", "selective_scan", measure, median_ms(body))


def lightning_attention():
    from fla.ops.lightning_attn import chunk_lightning_attn

    yield from both_ways(
        "flash-linear-attention chunk_lightning_attn",
        "lightning_attention",
        lambda *inputs: chunk_lightning_attn(*inputs, layer_idx=0, num_layers=24)[0],
        *(random(4, 8192, 32, 128) for _ in range(3)),
    )


def accelerated_scan():
    """A scan of given decays, where RG-LRU also makes its decays from its gates."""
    from accelerated_scan.scalar import scan

    yield from both_ways(
        "accelerated-scan, Triton",
        "rg_lru",
        scan,
        random(8, 4096, 4096).sigmoid(),
        random(8, 4096, 4096),
    )


def causal_conv1d():
    from causal_conv1d import causal_conv1d_fn

    yield from both_ways(
        "causal-conv1d, 4 taps",
        "causal_conv1d",
        causal_conv1d_fn,
        random(4, 4096, 8192),
        random(4096, 4),
        random(4096),
    )


def training(what, eyrie, model):
    """Rows of whole steps: the median of 5 after 3 that do not count, and the peak of memory."""
    import torch

    torch.set_float32_matmul_precision("high")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    times = []
    for _ in range(8):
        shape = (SEQUENCES, LENGTH)
        tokens = torch.randint(0, model.config.vocab_size, shape, device="cuda")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    what += f", {sum(p.numel() for p in model.parameters()) / 1e9:.2f}B parameters"
    rate = SEQUENCES * LENGTH / statistics.median(times[3:]) * 1e3
    yield Row(what, eyrie, "tokens/s", rate)
    yield Row(what, eyrie, "GB", torch.cuda.max_memory_allocated() / 1e9)


def mamba():
    import torch
    from fla.layers.mamba import is_fast_path_available
    from fla.models import MambaConfig, MambaForCausalLM

    if not is_fast_path_available:
        raise RuntimeError("flash-linear-attention does not find mamba_ssm's kernels")
    config = MambaConfig(
        vocab_size=50280,
        hidden_size=2048,
        num_hidden_layers=48,
        tie_word_embeddings=True,
        use_cache=False,
    )
    with torch.device("cuda"):
        model = MambaForCausalLM(config)
    yield from training("flash-linear-attention Mamba", "Mamba 1.4B", model)


def llama():
    """Griffin 1.3B with causal attention in every block."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=1,
        head_dim=128,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    model.compile()
    what = "transformers Llama, multi-query, torch.compile"
    rows = list(training(what, "Griffin 1.3B", model))
    yield from rows
    yield from (dataclasses.replace(row, eyrie="Hawk 1.3B") for row in rows)


@dataclasses.dataclass
class Peer:
    rows: typing.Callable  # yields Rows
    modules: str  # that must be importable, separated by spaces
    seconds: int  # limit of each of its processes
    # Processes that compile its kernels beforehand, each a share of the variants it tunes over.
    compilers: int = 0


PEERS = {
    "mlstm_kernels": Peer(mlstm_kernels, "mlstm_kernels", 150, 1),
    "sdpa": Peer(sdpa, "", 60),
    "flashrnn": Peer(flashrnn, "flashrnn", 150, 1),
    "selective_scan": Peer(selective_scan, "selective_scan_cuda", 60),
    "lightning_attention": Peer(lightning_attention, "fla", 150, 8),
    "accelerated_scan": Peer(accelerated_scan, "accelerated_scan", 60, 1),
    "causal_conv1d": Peer(causal_conv1d, "causal_conv1d causal_conv1d_cuda", 60),
    "mamba": Peer(mamba, "fla mamba_ssm selective_scan_cuda causal_conv1d", 120),
    "llama": Peer(llama, "transformers", 240),
}


def tune_share(index, count):
    """Makes Triton's tuners try every count-th variant alone; what they compile stays cached."""
    from triton.runtime.autotuner import Autotuner

    initialise = Autotuner.__init__

    def share(self, fn, arg_names, configs, *args, **kwargs):
        initialise(self, fn, arg_names, configs[index::count] or configs[:1], *args, **kwargs)

    Autotuner.__init__ = share


class Failed(Exception):
    """A process that failed; the last line that it wrote says why."""


class Process:
    """A process with a time limit, whose output is kept for the case that it fails."""

    def __init__(self, command, seconds, **environment):
        self.log = tempfile.TemporaryFile("w+")
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # so that compilers it starts end with it
        )

    def output(self):
        """All that it wrote, once it has ended."""
        try:
            status = self.process.wait(max(0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Failed(f"took longer than {self.seconds} s") from None
        self.log.seek(0)
        text = self.log.read()
        if status != 0:
            print(text[-3000:], file=sys.stderr)
            raise Failed((text.strip().splitlines() or [f"exit status {status}"])[-1])
        return text


def start_peer(name, result, share=(0, 1)):
    command = [sys.executable, __file__, "--measure", name, result, *map(str, share)]
    # What FLA's tuners find beside other processes must not be kept.
    return Process(command, PEERS[name].seconds, FLA_CACHE_RESULTS="0")


def measure(name, result, index, count):
    """The work of a process of one peer: writes its rows to the file `result`, a line each, so that
    those before a failure count."""
    if int(count) > 1:
        tune_share(int(index), int(count))
    with open(result, "w") as file:
        for row in PEERS[name].rows():
            print(json.dumps(dataclasses.asdict(row)), file=file, flush=True)


def compile_ahead(names, folder):
    """Fills the compilers' caches, all peers at once. What fails here fails again where it counts,
    or only compiles there."""
    processes = [
        start_peer(name, os.path.join(folder, "unused"), (index, PEERS[name].compilers))
        for name in names
        for index in range(PEERS[name].compilers)
    ]
    for process in processes:
        try:
            process.output()
        except Failed as failure:
            print(f"compiling ahead: {failure}", file=sys.stderr)


class Eyrie:
    """Eyrie's own benchmarks, each run once, when first asked for."""

    def __init__(self, binary):
        self.binary = binary
        self.found = {}

    def value(self, key, measure):
        if key not in self.found:
            (self.step if key in STEPS else self.kernels)(key)
        values = self.found[key]
        if measure == "forward+backward":
            return values["forward"] + values["backward"]
        return values[measure]

    def bench(self, *arguments):
        output = Process([self.binary, "bench", *arguments, "--json"], 120).output()
        return json.loads(output[output.index('{"benchmark"') :].splitlines()[0])

    def kernels(self, key):
        """All kernels of this one's shape at once."""
        names = [name for name in SHAPES if SHAPES[name] == SHAPES[key]]
        filters = [argument for name in names for argument in ("--filter", name)]
        report = self.bench("kernels", "--device", "cuda", "--shape", SHAPES[key], *filters)
        for row in report["rows"]:
            self.found.setdefault(row["kernel"], {})[row["direction"]] = row["ms"]

    def step(self, key):
        config, recompute = STEPS[key]
        settings = (
            f"train.sequence_length={LENGTH}",
            f"train.micro_batch_size={SEQUENCES}",
            f"train.global_batch_size={SEQUENCES}",
            f"train.recompute={recompute}",
            "run.device=cuda",
        )
        sets = [argument for setting in settings for argument in ("--set", setting)]
        root = pathlib.Path(__file__).resolve().parent.parent
        report = self.bench("step", "--config", str(root / config), "--steps", "5", *sets)
        rate = report["rows"][0]["tokens/s"]
        self.found[key] = {"tokens/s": rate, "GB": report["GPU memory in use GB"]}


def compare(row, eyrie):
    """The entry of a row in the table; its ratio exceeds 1 where Eyrie is faster or smaller."""
    ours = eyrie.value(row["eyrie"], row["measure"])
    ratio = ours / row["value"] if row["measure"] == "tokens/s" else row["value"] / ours
    unit = row["measure"] if row["measure"] in ("tokens/s", "GB") else "ms"
    return row | {"unit": unit, "eyrie_value": ours, "ratio": ratio}


def line(row):
    """A row of the table."""
    digits = {"ms": 2, "GB": 1, "tokens/s": 0}[row["unit"]]
    values = (f"{row[key]:,.{digits}f} {row['unit']}" for key in ("value", "eyrie_value"))
    cells = (row["what"], row["eyrie"], row["measure"], *values, f"{row['ratio']:.2f}")
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(PEERS)
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="NAME", help=f"of {known}")
    parser.add_argument("--eyrie", default="build-cuda/eyrie", help="binary (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there as well")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return 0
    if importlib.util.find_spec("torch") is None:
        parser.error("needs PyTorch")
    if not os.access(options.eyrie, os.X_OK):
        parser.error(f"--eyrie {options.eyrie}: no such program")
    names, missing, failed, rows = [], [], [], []
    for name in options.only or PEERS:
        modules = PEERS[name].modules.split()
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            print(f"{name}: not installed ({', '.join(absent)})", file=sys.stderr)
            missing.append(name)
        else:
            names.append(name)
    eyrie = Eyrie(options.eyrie)
    with tempfile.TemporaryDirectory() as folder:
        compile_ahead(names, folder)
        print("| peer | Eyrie's | measure | peer | Eyrie | ratio |\n|---|---|---|---|---|---|")
        for name in names:
            result = pathlib.Path(folder, name)
            result.touch()
            try:
                try:
                    start_peer(name, str(result)).output()
                finally:
                    for text in result.read_text().splitlines():
                        rows.append(compare(json.loads(text), eyrie))
                        print(line(rows[-1]), flush=True)
            except Failed as failure:
                print(f"{name}: failed: {failure}", file=sys.stderr)
                failed.append(name)
    if options.json:
        report = {"rows": rows, "not installed": missing, "failed": failed}
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return 3 if failed or (options.only and missing) else 0


if __name__ == "__main__":
    sys.exit(main())
