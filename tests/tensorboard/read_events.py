"""Compares what TensorBoard reads in a run directory with its metrics.jsonl."""

import glob
import json
import os
import sys

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = sys.argv[1]
files = glob.glob(os.path.join(run, "events.out.tfevents.*"))
assert len(files) == 2, files

events = EventAccumulator(run, size_guidance={"scalars": 0})
events.Reload()
with open(os.path.join(run, "metrics.jsonl")) as lines:
    metrics = [json.loads(line) for line in lines]
assert [line["step"] for line in metrics] == list(range(1, 13)), metrics

tags = ["loss", "validation_loss", "validation_accuracy", "grad_norm", "learning_rate",
        "tokens_per_second"]
assert sorted(events.Tags()["scalars"]) == sorted(tags), events.Tags()
for tag in tags:
    expected = [(line["step"], numpy.float32(line[tag])) for line in metrics if tag in line]
    read = [(event.step, numpy.float32(event.value)) for event in events.Scalars(tag)]
    assert read == expected, (tag, read, expected)
    print(f"{tag}: {len(read)} values")
