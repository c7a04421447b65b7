#!/usr/bin/env python3
"""Writes tests/golden/megatron_indexed/ with Megatron-LM's own writer of indexed datasets.

Needs numpy, and the unpacked wheel of megatron-core 0.12.3 (its source is not part of Eyrie):

    pip download megatron-core==0.12.3 --no-deps && unzip megatron_core-*.whl -d megatron
    tests/golden/make_megatron_indexed.py megatron

PyTorch and the rest of Megatron are not needed: the one module that holds the writer is loaded by
itself, over empty stand-ins for what it imports but the writer does not use.
"""

import importlib.util
import pathlib
import sys
import types

import numpy

# Documents, each a list of items. tests/launcher/indexed_dataset_test.cc knows them too.
SINGLE = [[[3, 1, 4, 1, 5]], [[]], [[92]], [[65, 35, 89, 79]]]
WIDE = [[[70000, 2, 2147483647]], [[65535, 65536]]]
SEVERAL = [[[10, 11]], [[12], [], [13, 14, 15]], [[16, 17], [18]]]

DATASETS = {
    "uint16": (numpy.uint16, SINGLE, False),
    "int32": (numpy.int32, WIDE, False),
    "uint8": (numpy.uint8, SINGLE, False),
    "int8": (numpy.int8, SINGLE, False),
    "int16": (numpy.int16, SINGLE, False),
    "int64": (numpy.int64, WIDE, False),
    "several_items": (numpy.uint16, SEVERAL, False),
    "multimodal": (numpy.uint16, SEVERAL, True),
}


def load_writer(root: pathlib.Path):
    """The module megatron.core.datasets.indexed_dataset, alone."""

    def stand_in(name: str, **members):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
        return module

    data = stand_in("torch.utils.data", Dataset=object)
    utils = stand_in("torch.utils", data=data)
    stand_in("torch", utils=utils, Tensor=object)
    for package in ("megatron", "megatron.core", "megatron.core.datasets"):
        stand_in(package)
    s3 = ("S3Config", "is_s3_path", "maybe_download_file", "object_exists", "parse_s3_path")
    stand_in("megatron.core.datasets.utils_s3", **{name: None for name in s3})
    stand_in("megatron.core.utils", log_single_rank=None)
    path = root / "megatron/core/datasets/indexed_dataset.py"
    spec = importlib.util.spec_from_file_location("indexed_dataset", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    writer = load_writer(pathlib.Path(sys.argv[1]))
    folder = pathlib.Path(__file__).parent / "megatron_indexed"
    folder.mkdir(exist_ok=True)
    for name, (dtype, documents, multimodal) in DATASETS.items():
        prefix = folder / name
        builder = writer.IndexedDatasetBuilder(f"{prefix}.bin", dtype, multimodal)
        for items in documents:
            tokens = [token for item in items for token in item]
            lengths = [len(item) for item in items]
            modes = list(range(len(items))) if multimodal else None
            builder.add_document(tokens, lengths, modes)
        builder.finalize(f"{prefix}.idx")


if __name__ == "__main__":
    main()
