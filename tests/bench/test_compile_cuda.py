"""The compile gate looks at every shipped kernel and refuses stacks, spills and too much memory."""

import dataclasses
import re

import pytest

from benchmarks import compile_cuda, cuda_spills
from fastht.ops.cuda import native, nvrtc

pytestmark = pytest.mark.skipif(native is None, reason="needs the native extension with CUDA")

ROW = compile_cuda.Row(
    "", "sm_90a", 64, "bf16", "mix_up", "...", 128, 0, 0, 100_000, "mma.sync", ()
)  # fmt: skip


def seen(arch, aligned=True):
    return {
        kernel.source: shared
        for channels in (32, 64, 128)
        for numbers in compile_cuda.NUMBERS
        for kernel, (_, shared) in compile_cuda.launches(arch, channels, numbers, aligned).items()
    }


def test_every_kernel_that_an_install_compiles_is_looked_at():
    looked_at = {source for arch in compile_cuda.DEVICES for source in seen(arch)}
    assert {source for _, source, _ in native.shipped_kernels(True)} <= looked_at


def test_no_launch_asks_for_more_than_the_device_has():
    for arch, ((limit, _, _), *_) in compile_cuda.DEVICES.items():
        shared = seen(arch)
        assert max(shared.values()) <= limit, arch
        # The means of rows after a full filter need registers alone.
        assert all(size or "row_means" in kernel for kernel, size in shared.items()), arch


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("arch", compile_cuda.DEVICES)
def test_no_kernel_gives_up_registers_for_blocks_that_do_not_fit(arch, aligned):
    multiprocessor = max(shared for _, shared, _ in compile_cuda.DEVICES[arch])
    bounds = re.compile(r"\((\w+), \w+, (\d+), (\d+), ")
    seen_bounds = {}
    for source, shared in seen(arch, aligned).items():
        name, threads, blocks = bounds.search(source).groups()
        if name not in ("down", "mix_up", "contract", "mix_back", "expand"):
            continue  # of few registers, whatever their shared memory
        assert int(blocks) == 1 or int(blocks) * (shared + 1024) <= multiprocessor, source
        # A scheduler has registers for four warps of 128 each.
        assert int(blocks) * int(threads) <= 16 * 32, source
        seen_bounds.setdefault(name, set()).add(int(blocks))
    assert len(seen_bounds) == 5
    assert len(seen_bounds["down"]) > 1, "of small grids more blocks fit, or else of large ones"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"stack": 8}, "8 bytes of stack, 0 accesses of local memory"),
        ({"local": 3}, "0 bytes of stack, 3 accesses of local memory"),
        ({"arch": "sm_120", "shared": 101_377}, "needs 101377 bytes of shared memory of 101376"),
        ({"arch": "sm_120", "shared": 101_376}, None),
    ],
)
def test_what_is_wrong_is_said(change, said):
    assert compile_cuda.problem(dataclasses.replace(ROW, **change)) == said


def test_a_kernel_is_compiled_and_measured():
    try:
        nvrtc.load()
    except LookupError as error:
        pytest.skip(str(error))
    (kernel, (_, shared)), *_ = compile_cuda.launches("80", 64, "bf16", True).items()
    kind = compile_cuda.Kind("80", 64, "bf16", True)
    row = compile_cuda.row_of(kernel, kind, shared, compile_cuda.Made().of(kernel, "80"))
    assert (row.arch, row.kernel, row.shared) == ("sm_80", "fold", shared)
    assert 16 <= row.registers <= 255
    assert f" {row.registers} " in row.line(None)


def test_what_is_kept_is_not_compiled_again(tmp_path, monkeypatch):
    made = []

    def compiled(compiler, kernel, arch):
        made.append((kernel.name, arch))
        return b"a cubin"

    class Compiler:
        version = (13, 2)

    monkeypatch.setattr(nvrtc, "load", Compiler)
    monkeypatch.setattr(compile_cuda.kernels, "compile_kernel", compiled)
    monkeypatch.setattr(compile_cuda, "resources", lambda cubin: (100 + len(made), 0, 0))
    kind = compile_cuda.Kind("90a", 64, "bf16", True, ((1, 14, 14),), frozenset({"down", "fold"}))
    file = tmp_path / "kept" / "cuda.jsonl"
    first = list(compile_cuda.rows([kind, kind], 1, compile_cuda.Made(file)))
    assert made == [("fold", "sm_90a"), ("down", "sm_90a")]
    assert [row.registers for row in first] == [101, 102]
    assert list(compile_cuda.rows([kind], 1, compile_cuda.Made(file))) == first
    assert len(made) == 2
    monkeypatch.setattr(Compiler, "version", (13, 0))
    assert list(compile_cuda.rows([kind], 1, compile_cuda.Made(file))) != first


def test_kernels_that_spilled_once_are_in_the_thin_set():
    (kernel, kind, _), *_ = compile_cuda.wanted(compile_cuda._ONCE_SPILLED[:1])
    assert (kernel.name, kind.aligned) == ("down", False)
    for kind in compile_cuda._ONCE_SPILLED:
        names = {kernel.name for kernel, _, _ in compile_cuda.wanted([kind])}
        assert names == kind.names, kind


def test_the_page_counts_what_spills_and_what_was_not_compiled():
    spills = dataclasses.replace(ROW, arch="sm_80", kernel="down", local=3, registers=255)
    cells = {
        ("90a", 64, "bf16"): cuda_spills.Cell((ROW, ROW), 0),
        ("80", 64, "bf16"): cuda_spills.Cell((dataclasses.replace(ROW, arch="sm_80"), spills), 7),
    }
    lines = list(cuda_spills.page(lambda *kind: cells.get(kind, cuda_spills.Cell((), 9)), "13.2"))
    assert lines[0] == cuda_spills.TITLE
    assert "| 64 | bf16 | 1 of 2, 7 not compiled | 0 of 2 | - | - |" in lines
    assert "| 64 | fp16 | - | - | - | - |" in lines
    assert "| `down` ... | 64 | bf16 | sm_80 | 0 | 3 |" in lines
    assert "| `mix_up` | 128 | 128 | - | - |" in lines
    assert "| `down` | 255 | - | - | - |" in lines
