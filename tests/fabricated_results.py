"""Results as pytest-benchmark writes them, with made-up numbers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

MAIN = (8, 197, 768)
SHAPES = ((1, 197, 768), MAIN, (8, 577, 1024), (32, 50, 768))
# What a contestant takes, in times of the fused one.
SLOWER = {"fused": 1.0, "published": 4.0, "eager": 3.0, "compile": 2.5, "gemms": 0.8}
KEPT = {"fused": 4000, "published": 16000, "eager": 12000, "compile": 10000}  # bytes a token
METHODS = {
    # time in ms, kept MiB, peak MiB, trainable
    "frozen": (300, 0, 100, 0),
    "full": (1000, 800, 900, 86_000_000),
    "lora": (800, 640, 700, 590_000),
    "lora-compiled": (700, 500, 560, 590_000),
    "mona": (900, 900, 1000, 1_200_000),
    "ht-reference": (950, 1100, 1200, 1_200_000),
    "ht-reference-compiled": (850, 900, 950, 1_200_000),
    "ht": (720, 512, 560, 1_200_000),
    "ht-compiled": (665, 480, 504, 1_200_000),
}
MIB = 2**20

CPU = {
    "device": "cpu",
    "cpu": "Example(R) Xeon(R) Processor",
    "cores": 2,
    "threads": 2,
    "torch_capability": "AVX512",
    "cpu_mhz": 2599.998,
    "memory_bytes": 24 * 2**30,
    "load": 0.25,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "packages": {"torch": "2.15.0", "triton": "3.9.0", "peft": None},
    "cuda": "13.2",
    "fastht": "0.1.0",
    "backends": {"cpu": "fused native kernels"},
    "cache_bytes": 32 * 2**20,
    "gpu": None,
}
CUDA = CPU | {
    "device": "cuda",
    "cores": 16,
    "threads": 16,
    "gpu": "EXAMPLE H200",
    "gpu_details": {
        "capability": "9.0",
        "multiprocessors": 132,
        "memory_bytes": 139 * 2**30,
        "driver_version": "580.1",
        "clocks.sm": "1980 MHz",
    },
    "backends": {"triton": "fused Triton kernels"},
    "cache_bytes": 50 * 2**20,
}


def entry(name: str, seconds: float, **info: Any) -> dict[str, Any]:
    """One entry, with an interquartile range of a tenth."""
    data = [0.9 * seconds, seconds, 1.1 * seconds]
    stats = {"median": seconds, "iqr": 0.1 * seconds, "rounds": 3, "data": data, "ops": 1 / seconds}
    return {"group": "g", "name": name, "params": None, "stats": stats, "extra_info": info}


def document(entries: list[dict[str, Any]], machine: dict[str, Any], **other: Any) -> dict:
    """One run."""
    return {
        "machine_info": machine,
        "commit_info": {"id": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "datetime": "2026-11-22T12:00:00+00:00",
        "version": "5.3.1",
        "command": "pytest benchmarks --benchmark-only",
        "benchmarks": entries,
        **other,
    }


def write(path: Path, *entries: dict[str, Any], machine: dict = CPU, **other: Any) -> Path:
    """Write one run to a file."""
    path.write_text(json.dumps(document(list(entries), machine, **other)))
    return path


def roofs() -> list[dict[str, Any]]:
    """A copy at 20 GB/s and products at 400 and 1600 GFLOP/s."""
    return [
        entry("test_copy", 0.1, contestant="copy", bytes=2 * 10**9),
        product("float32", 400e9),
        product("bfloat16", 1600e9),
    ]


def without(entries: list[dict[str, Any]], *contestants: str) -> list[dict[str, Any]]:
    """The same without some of the contestants, on however many threads."""
    return [
        entry
        for entry in entries
        if entry["extra_info"]["contestant"].removesuffix(" 1").removesuffix(" 2")
        not in contestants
    ]


def product(dtype: str, flop_per_s: float) -> dict[str, Any]:
    flop = 16 * 10**9
    name = f"test_product[{dtype}]"
    return entry(name, flop / flop_per_s, contestant=f"product {dtype}", dtype=dtype, flop=flop)


def case(shape: tuple[int, ...], dtype: str, part: str, channels: int = 64) -> dict[str, Any]:
    """What an adapter's entry says of itself, as benchmarks/roofline.py counts it."""
    batch, tokens, dim = shape
    rows = batch * tokens
    passes = {"forward": (2, 2), "backward": (4, 3), "both": (6, 5)}[part]
    return {
        "shape": list(shape),
        "channels": channels,
        "dtype": dtype,
        "pass": part,
        "flop": passes[0] * rows * channels * (2 * dim + 49 + channels),
        "floor_bytes": passes[1] * rows * dim * {"float32": 4, "bfloat16": 2}[dtype],
    }


def cost(info: dict[str, Any]) -> float:
    """Seconds of the fused backend."""
    return info["flop"] / {"float32": 100e9, "bfloat16": 250e9}[info["dtype"]]


def adapter(shape, dtype, part, fused="cpu") -> list[dict[str, Any]]:
    """One case of test_adapter."""
    info = case(shape, dtype, part)
    label = f"{'x'.join(map(str, shape))}x64-{dtype}-{part}"
    return [
        entry(
            f"test_adapter[{label}-{fused if name == 'fused' else name}]",
            slower * cost(info),
            contestant=fused if name == "fused" else name,
            **info,
        )
        for name, slower in SLOWER.items()
    ]


def contest(**milliseconds: float) -> list[dict]:
    """One case of 1.2 GFLOP and 20 MB: 3 ms of computing and 1 ms of moving under the roofs."""
    info = case((2, 5, 8), "float32", "both") | {"flop": 1_200_000_000, "floor_bytes": 20_000_000}
    return [
        entry(f"test_adapter[{name}]", ms / 1e3, contestant=name, **info)
        for name, ms in milliseconds.items()
    ]


def sweeps(fused="cpu") -> list[dict[str, Any]]:
    points = [("batch", (b, 197, 768), 64) for b in (1, 2, 4, 8, 16, 32)]
    points += [("side", (8, 1 + side * side, 768), 64) for side in (4, 7, 14, 24, 32)]
    points += [("dim", (8, 197, dim), 64) for dim in (192, 384, 768, 1024, 1280)]
    points += [("channels", MAIN, channels) for channels in (16, 32, 64, 128)]
    made = []
    for field, shape, channels in points:
        for dtype in ("float32", "bfloat16"):
            info = case(shape, dtype, "both", channels)
            for name in ("fused", "eager", "compile"):
                seconds = SLOWER[name] * cost(info) + 2e-4
                contestant = fused if name == "fused" else name
                label = f"{field}-{'x'.join(map(str, shape))}x{channels}-{dtype}-{contestant}"
                made.append(
                    entry(
                        f"test_sweep[{label}]", seconds, contestant=contestant, sweep=field, **info
                    )
                )
    return made


def threads() -> list[dict[str, Any]]:
    made = []
    for shape in SHAPES:
        info = case(shape, "float32", "both")
        for name, speedup in (("cpu", 1.6), ("eager", 1.25)):
            for count in (1, 2):
                seconds = 0.016 * SLOWER[name if name != "cpu" else "fused"]
                seconds /= speedup if count == 2 else 1
                label = f"{'x'.join(map(str, shape))}x64-{name}-{count}"
                contestant = f"{name} {count}"
                made.append(
                    entry(
                        f"test_threads[{label}]", seconds, contestant=contestant, threads=count,
                        **info,
                    )
                )  # fmt: skip
    return made


def memory(fused="cpu", peak: bool = True) -> list[dict[str, Any]]:
    """Half as much in bfloat16, and twice as much at the peak."""
    made = []
    for dtype, part in (("float32", 1.0), ("bfloat16", 0.5)):
        for name, kept in KEPT.items():
            saved = int(part * kept * 8 * 197)
            contestant = fused if name == "fused" else name
            made.append(
                entry(
                    f"test_memory[{dtype}-{contestant}]", 0.05, contestant=contestant,
                    saved_bytes=saved, peak_bytes=2 * saved if peak else None,
                    **case(MAIN, dtype, "both"),
                )
            )  # fmt: skip
    return made


def tower(fused="cpu") -> list[dict[str, Any]]:
    info = {"model": "vit_base_patch16_224", "batch": 8, "dtype": "float32", "pass": "forward"}
    contestants = {"frozen": (1.0, {}), fused: (1.03, {"percent_of_frozen": 3.14})}
    contestants["published"] = (1.2, {"percent_of_frozen": 20.4})
    return [
        entry(f"test_tower[float32-{name}]", seconds, contestant=name, **info, **share)
        for name, (seconds, share) in contestants.items()
    ]


def training(precision: str = "fp32", peak: bool = True) -> list[dict[str, Any]]:
    return [
        entry(
            f"test_training[{precision}-{name}]",
            ms / 1e3,
            contestant=name,
            model="vit_base_patch16_224",
            batch=32,
            precision=precision,
            trainable=trainable,
            saved_bytes=kept * MIB,
            held_bytes=400 * MIB,
            peak_bytes=most * MIB if peak else None,
            backend="cpu" if name.startswith("ht") else None,
            detail="r = 16" if name.startswith("lora") else None,
        )
        for name, (ms, kept, most, trainable) in METHODS.items()
    ]


def throughput(fused="cpu") -> list[dict[str, Any]]:
    info = {"model": "ViT-B-16", "batch": 16, "precision": "fp32", "images": 64}
    rates = {"loading alone": 400.0, fused: 40.0, "published": 32.0}
    return [
        entry(f"test_throughput[ViT-B-16-16-{name}]", 64 / rate, contestant=name, **info)
        for name, rate in rates.items()
    ]


def export() -> list[dict[str, Any]]:
    info = {"model": "vit_base_patch16_224", "batch": 8, "dtype": "float32", "pass": "forward"}
    forms = {"ht": (400, 330), "exported": (380, 335), "onnxruntime": (500, 334)}
    return [
        entry(f"test_export[8-{name}]", ms / 1e3, contestant=name, bytes=size * MIB, **info)
        for name, (ms, size) in forms.items()
    ]


def losses(fused: str = "blocked", dtype: str = "float32") -> list[dict[str, Any]]:
    """Batches of 1024 and 4096: 16 times as long and, where logits are whole, as much memory."""
    slower = {fused: 1.0, "dense": 2.0, "open_clip": 2.5}
    made = []
    for loss, batch in itertools.product(("clip", "siglip"), (1024, 4096)):
        for name in (*slower, *(["chunked"] if loss == "siglip" else [])):
            info = {"loss": loss, "batch": batch, "width": 512, "dtype": dtype}
            label = f"[{loss}-{batch}x512-{dtype}-{name}]"
            seconds = 0.02 * slower.get(name, 3.0) * (batch / 1024) ** 2
            made.append(entry(f"test_losses{label}", seconds, contestant=name, **info))
            peak = batch * 4096 if name == fused else 12 * batch**2
            made.append(
                entry(f"test_losses_memory{label}", 9.0, contestant=name, peak_bytes=peak, **info)
            )
    return made


def everything(fused: str = "cpu", shapes=SHAPES) -> list[dict[str, Any]]:
    """All suites."""
    made = roofs()
    for shape in shapes:
        for dtype in ("float32", "bfloat16"):
            for part in ("forward", "backward", "both"):
                made += adapter(shape, dtype, part, fused)
    made += [*sweeps(fused), *memory(fused), *tower(fused)]
    made += [*threads(), *export()] if fused == "cpu" else []
    made += [*training("fp32"), *training("bf16"), *throughput(fused)]
    return made + losses("triton" if fused == "triton" else "blocked")


SUITES = {
    "roofs": roofs,
    "adapter": lambda: adapter(MAIN, "float32", "both"),
    "sweeps": sweeps,
    "threads": threads,
    "memory": memory,
    "tower": tower,
    "training": training,
    "throughput": throughput,
    "export": export,
    "losses": losses,
    "losses_memory": lambda: [e for e in losses() if "memory" in e["name"]],
}
