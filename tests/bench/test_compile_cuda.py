"""The compile gate looks at every shipped kernel and refuses stacks, spills and too much memory."""

import dataclasses

import pytest

from benchmarks import compile_cuda
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
    row = compile_cuda.row(kernel, "80", 64, "bf16", shared)
    assert (row.arch, row.kernel, row.shared) == ("sm_80", "fold", shared)
    assert 16 <= row.registers <= 255
    assert f" {row.registers} " in row.line(None)
