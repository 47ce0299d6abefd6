"""The sections about whole models: text and tables, without headings."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import derive
from benchmarks.report.derive import Group, median, ratio
from benchmarks.report.results import Entry, Results
from benchmarks.report.tables import (
    UNKNOWN,
    mebibytes,
    milliseconds,
    number,
    percent,
    table,
    times,
)


def tower(results: Results) -> Iterator[str]:
    """Show what adapters add to a frozen tower."""
    found = derive.groups(results, "test_tower", "model", "batch", "dtype")
    if not found:
        return
    yield (
        "Evaluation, without gradients, adapters in every block. What they add is the median over "
        "the rounds of their time over the frozen tower's in the same round."
    )
    yield ""
    rows = []
    for (model, batch, dtype), group in found.items():
        for name, entry in group.items():
            added = entry.info.get("percent_of_frozen")
            share = UNKNOWN if added is None else percent(added / 100)
            rows.append((model, batch, dtype, name, milliseconds(entry), share))
    yield from table(("model", "batch", "dtype", "", "ms", "adapters add"), rows)


def training(results: Results) -> Iterator[str]:
    """Show time and memory of a step of each method."""
    found = derive.groups(results, "test_training", *derive.MODEL_CASE)
    if not found:
        return
    yield (
        "Forward, backward and optimizer. Kept: what autograd holds for the backward pass; held: "
        "weights, buffers and optimizer states; peak: the most memory of a step, what is held "
        "included. LoRA's are those of `lora`, not compiled, in the same case."
    )
    yield ""
    rows = []
    for (model, batch, precision), group in found.items():
        lora = group.get("lora")
        for name, entry in group.items():
            info = entry.info
            row = [model, batch, precision, name, milliseconds(entry)]
            row += [number(batch / entry.median), times(ratio(entry.median, median(group, "lora")))]
            row += [mebibytes(info["saved_bytes"]), times(of_lora(entry, lora, "saved_bytes"))]
            row += [mebibytes(info["held_bytes"]), mebibytes(info["peak_bytes"])]
            row += [times(of_lora(entry, lora, "peak_bytes")), f"{info['trainable']:,}"]
            rows.append(row)
    header = ["model", "batch", "precision", "method", "ms", "images/s", "of LoRA's time"]
    header += ["kept MiB", "kept, of LoRA's", "held MiB", "peak MiB", "peak, of LoRA's"]
    header += ["trainable"]
    yield from table(header, rows)
    yield from details(found)


def of_lora(entry: Entry, lora: Entry | None, field: str) -> float | None:
    """Return a field over LoRA's."""
    return None if lora is None else ratio(entry.info[field], lora.info[field])


def details(found: dict[tuple, Group]) -> Iterator[str]:
    """List what each method is and which backend computed it."""
    told: dict[str, None] = {}
    for group in found.values():
        for name, entry in group.items():
            detail, backend = entry.info.get("detail"), entry.info.get("backend")
            parts = [detail, backend and f"backend `{backend}`"]
            if any(parts):
                told[f"- `{name}`: {', '.join(part for part in parts if part)}"] = None
    if told:
        yield from (*told, "")


def throughput(results: Results) -> Iterator[str]:
    """Show images a second of the trainer, and of its loading alone."""
    found = derive.groups(results, "test_throughput", *derive.MODEL_CASE, "images")
    if not found:
        return
    yield (
        "A round is one epoch of contrastive training by the trainer of `fastht train`: images are "
        "read and resized by its worker processes, the model takes its steps, the state is "
        "written. `loading alone` reads and resizes the same images, and nobody trains on them."
    )
    yield ""
    rows = []
    for (model, batch, precision, images), group in found.items():
        loading = images_per_s(group.get("loading alone"))
        for name, entry in group.items():
            rate = images_per_s(entry)
            row = [model, batch, precision, name, images, milliseconds(entry)]
            rows.append((*row, number(rate), percent(ratio(rate, loading))))
    header = ["model", "batch", "precision", "", "images a round", "ms a round", "images/s"]
    yield from table((*header, "of loading alone"), rows)


def export(results: Results) -> Iterator[str]:
    """Show time and bytes of the files of ``fastht.export`` beside the model's."""
    found = derive.groups(results, "test_export", "model", "batch", "dtype")
    if not found:
        return
    yield (
        "Evaluation on a CPU, without gradients, adapters in every block. `ht`: the patched model; "
        "`ht-reference`: the same with its adapters in plain PyTorch, as published; `exported`: "
        "the file of `fastht.export`, run by PyTorch; `aotinductor`: what it makes of that file "
        "ahead of time; `onnxruntime`: the ONNX file. All have been held against `ht-reference` "
        "in the same run. MiB are of the weights or of the file that is run."
    )
    yield ""
    rows = []
    for (model, batch, dtype), group in found.items():
        for name, entry in group.items():
            share = ratio(entry.median, median(group, "ht"))
            row = [model, batch, dtype, name, milliseconds(entry), number(batch / entry.median)]
            rows.append((*row, times(share), mebibytes(entry.info["bytes"])))
    header = ("model", "batch", "dtype", "", "ms", "images/s", "of ht's time", "MiB")
    yield from table(header, rows)


def images_per_s(entry: Entry | None) -> float | None:
    """Return the images of a round over its seconds."""
    return None if entry is None else entry.info["images"] / entry.median
