"""The mended interpreter does what a GPU's tensor cores do: each mend has its control here."""

import pytest
import torch
import triton_interpreter

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels run on a GPU here", allow_module_level=True)

import triton.language as tl  # noqa: E402


@triton.jit
def product_kernel(a, b, out, precision: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    value = tl.dot(tl.load(a + at), tl.load(b + at), input_precision=precision)
    tl.store(out + at, value)


def product(a, b, precision):
    out = torch.empty(16, 16)
    product_kernel[(1,)](a, b, out, precision=precision)
    return out


def diagonal(value, dtype=torch.float32):
    return value * torch.eye(16, dtype=dtype)


@pytest.mark.parametrize("sign", [1, -1])
def test_tensor_float_32_cuts_both_operands_after_ten_bits_of_mantissa(sign):
    ten, all_but_cut, eleven = 1 + 2**-10, 1 + 2**-10 - 2**-23, 1 + 2**-11
    one = diagonal(1.0)
    for operand, kept in ((ten, ten), (all_but_cut, 1.0), (eleven, 1.0)):
        for a, b in ((diagonal(sign * operand), one), (one, diagonal(sign * operand))):
            assert torch.equal(product(a, b, "tf32"), diagonal(sign * kept))
            assert torch.equal(product(a, b, "ieee"), diagonal(sign * operand))


@triton.jit
def exp_kernel(x, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.exp(tl.load(x + i)))


def test_exponentials_are_those_of_two_to_the_power_of_a_product():
    x = torch.full((16,), -86.0)
    out = torch.empty(16)
    exp_kernel[(1,)](x, out)
    power = (x * 1.442695040888963407).double()  # which float32 rounds, the number too
    assert torch.equal(out, torch.exp2(power).float())
    assert not torch.equal(out, x.exp())


def test_three_products_keep_what_one_cuts():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    errors = {
        precision: (product(a, b, precision) - exact).abs().max().item()
        for precision in ("ieee", "tf32x3", "tf32")
    }
    assert errors["tf32x3"] < 8 * errors["ieee"]  # whose sums are not cut
    assert errors["tf32"] > 100 * errors["ieee"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_operands_are_multiplied_whole(dtype):
    value = 1 + torch.finfo(dtype).eps
    result = product(diagonal(value, dtype), diagonal(1.0, dtype), "tf32")
    assert torch.equal(result, diagonal(value))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(value):
    a = torch.full((16, 16), value)
    for precision in ("tf32", "ieee"):
        assert not product(a, torch.ones(16, 16), precision).isfinite().any()


@triton.jit
def round_kernel(x, out):
    tl.store(out, tl.load(x).to(tl.bfloat16))


def test_casts_round_to_nearest():
    out = torch.empty(1, dtype=torch.bfloat16)
    round_kernel[(1,)](torch.tensor([1 + 2**-7 - 2**-10]), out)
    assert out.item() == 1 + 2**-7


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_sums_of_tensor_cores_are_cut_after_every_eight_products(precision):
    a = torch.zeros(16, 16)
    a[0] = 2.0**-25
    a[0, 0] = 1.0
    ones, exact = torch.ones(16, 16), 1 + 15 * 2.0**-25
    # The first eight make 1.75 units of the last place, which are cut; then come two.
    assert product(a, ones, precision)[0, 0] == 1 + 3 * 2**-23 < exact
    assert product(-a, ones, precision)[0, 0] == -1 - 3 * 2**-23


@triton.jit
def doubled(x):
    return x + tl.sum(tl.zeros([16], tl.float32)) + x


@triton.jit
def quadruple_kernel(x, out):
    i = tl.arange(0, 16)
    tl.store(out + i, doubled(doubled(tl.load(x + i))))


def test_the_language_is_replaced_once_a_launch_and_restored(monkeypatch):
    tensor_type, replaced = tl.tensor, []
    original = triton_interpreter.interpreter._patch_lang_tensor
    monkeypatch.setattr(
        triton_interpreter.interpreter,
        "_patch_lang_tensor",
        lambda *arguments: replaced.append(1) or original(*arguments),
    )
    restores = hasattr(triton_interpreter.interpreter, "_LangPatchScope")  # since Triton 3.6
    x, out = torch.arange(16.0), torch.empty(16)
    for _ in range(2):
        before = tl.load, tensor_type.__add__
        quadruple_kernel[(3,)](x, out)
        assert torch.equal(out, 4 * x)
        assert not restores or (tl.load, tensor_type.__add__) == before
    # For the kernel's module and for that of tl.sum, and not for each of 36 calls of functions.
    assert len(replaced) <= 2 * 3


@triton.jit
def sum_kernel(x, by, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.load(x + i) + by)


def test_an_index_that_overflows_is_seen():
    x, out = torch.full((16,), 2**31 - 2, dtype=torch.int32), torch.empty(16, dtype=torch.int32)
    sum_kernel[(1,)](x, 1, out)
    assert (out == 2**31 - 1).all()
    with pytest.raises(triton.runtime.errors.InterpreterError, match=r"int32 overflow .* add"):
        sum_kernel[(1,)](x, 2, out)
