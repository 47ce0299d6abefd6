"""The table of tile sizes: complete, readable, looked up by a stated order; and it compiles."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import fresh
import pytest
import torch

triton = pytest.importorskip("triton")
from fastht.ops.triton import configs  # noqa: E402

ROOT = Path(__file__).parent.parent


def test_every_launch_has_a_row():
    for kernel, arch, channels, numbers in itertools.product(
        configs.KERNELS, configs.ARCHITECTURES, configs.CHANNELS, configs.NUMBERS
    ):
        options = configs.options(kernel, arch, channels, numbers, 768)
        assert options["num_warps"] in (2, 4, 8, 16)


def test_every_row_is_whole_and_says_how_it_was_chosen():
    keys = {"kernel", "arch", "dim", "channels", "numbers", "options", "chosen"}
    for row in configs.table():
        assert row.keys() - {"triton"} == keys
        assert row["kernel"] in configs.KERNELS
        assert row["chosen"]


def test_the_last_row_that_matches_counts(monkeypatch):
    general = {"kernel": "up", "arch": "*", "dim": "*", "channels": "*", "numbers": "*"}
    rows = (
        general | {"options": {"BM": 1}},
        general | {"arch": ["sm_90"], "dim": [768], "options": {"BM": 2}},
    )
    monkeypatch.setattr(configs, "table", lambda: rows)
    configs.options.cache_clear()
    try:
        assert configs.options("up", "sm_90", 64, "16", 768) == {"BM": 2}
        assert configs.options("up", "sm_90", 64, "16", 1024) == {"BM": 1}
        assert configs.options("up", "sm_80", 64, "16", 768) == {"BM": 1}
        with pytest.raises(LookupError, match="no configuration of the Triton kernel 'down'"):
            configs.options("down", "sm_80", 64, "16", 768)
    finally:
        configs.options.cache_clear()


def test_a_row_is_for_a_chip_or_a_column_of_chips_and_for_releases(monkeypatch):
    general = {"kernel": "up", "arch": "*", "dim": "*", "channels": "*", "numbers": "*"}
    rows = (
        general | {"options": {"BM": 1}},
        general | {"arch": ["sm_80"], "options": {"BM": 2}},
        general | {"arch": ["sm_86"], "options": {"BM": 3}},
        general | {"arch": ["sm_120"], "triton": ["3.4", "3.6"], "options": {"BM": 4}},
    )
    monkeypatch.setattr(configs, "table", lambda: rows)
    found = {}
    for release in ("3.4", "3.5", "3.6"):
        monkeypatch.setattr(configs, "release", lambda release=release: release)
        for arch in ("sm_90", "sm_89", "sm_86", "sm_120"):
            configs.options.cache_clear()
            found[release, arch] = configs.options("up", arch, 64, "16", 768)["BM"]
    configs.options.cache_clear()
    assert {arch: found["3.5", arch] for arch in ("sm_90", "sm_89", "sm_86", "sm_120")} == {
        "sm_90": 1, "sm_89": 2, "sm_86": 3, "sm_120": 2,
    }  # fmt: skip
    assert found["3.4", "sm_120"] == found["3.6", "sm_120"] == 4
    assert found["3.4", "sm_89"] == 2


def test_the_release_is_named_as_in_the_table(monkeypatch):
    for version, name in (("3.9.0", "3.9"), ("3.10.1", "3.10"), ("3.6.0+git1234", "3.6")):
        monkeypatch.setattr(triton, "__version__", version)
        configs.release.cache_clear()
        assert configs.release() == name
    configs.release.cache_clear()


@pytest.mark.parametrize(
    ("capability", "arch", "column"),
    [
        ((8, 0), "sm_80", "sm_80"),
        ((8, 9), "sm_89", "sm_80"),
        ((9, 0), "sm_90", "sm_90"),
        ((10, 3), "sm_103", "sm_100"),
        ((11, 0), "sm_110", "sm_100"),
        ((12, 1), "sm_121", "sm_80"),
    ],
)
def test_a_device_finds_its_column(monkeypatch, capability, arch, column):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    configs.architecture.cache_clear()
    try:
        assert configs.architecture(torch.device("cuda")) == arch
        assert configs.column(arch) == column
    finally:
        configs.architecture.cache_clear()


def run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_shipped_kernels_compile_for_hopper_without_spills():
    done = run(
        "benchmarks.compile_table",
        *("--arch", "sm_90", "--channels", "64", "--numbers", "bf16", "--dim", "768"),
        *("--of", "adapter"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[3]: line for line in done.stdout.splitlines() if "_kernel " in line}
    assert {"down_kernel", "up_kernel", "contract_kernel", "expand_kernel"} <= rows.keys()
    # The products with x and dout are those of the tensor cores' fastest path.
    assert all("wgmma" in rows[name] for name in ("down_kernel", "contract_kernel"))
    assert "serve D of 768; 0 with a remark" in done.stdout


def tune(*arguments):
    code = "import runpy; runpy.run_module('benchmarks.tune', run_name='__main__', alter_sys=True)"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return fresh.run(code, *arguments, env=environment, cwd=ROOT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_says_so():
    done = tune()
    assert done.returncode != 0
    assert "GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_tuning_leaves_a_foreign_file_alone(tmp_path):
    foreign = tmp_path / "results.json"
    foreign.write_text('{"rows": []}')
    done = tune("--dry", "--write", "--table", str(foreign))
    assert done.returncode != 0
    assert "results.json is no table of tile sizes" in done.stderr
    assert "Traceback" not in done.stderr
    assert foreign.read_text() == '{"rows": []}'


@pytest.mark.slow
def test_calls_that_must_have_equal_bits_add_up_in_the_same_layouts():
    done = run("benchmarks.reduce_layouts", "--numbers", "32")
    assert done.returncode == 0, done.stdout + done.stderr
    # The control: where the features lie otherwise, other threads add them up.
    assert "features slowest: down_kernel" in done.stdout
    assert done.stdout.count(": the same") == 7
