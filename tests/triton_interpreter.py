"""Triton's interpreter with its arithmetic mended, so that kernels can be tested without a GPU.

It multiplies bfloat16 matrices as if their bits were integers, and truncates where a GPU rounds;
and in TensorFloat-32 products, where a GPU's tensor cores cut their operands and their sums, it
does neither. Its exponentials are better than those that Triton compiles.
"""

import math

import numpy as np
import torch
import triton.language as tl
import triton_shortcuts
from triton.runtime import interpreter

_DTYPES = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16}
_HOST = {tl.float32: np.float32, tl.float16: np.float16, tl.bfloat16: np.uint16}


def _to_torch(handle):
    data = np.ascontiguousarray(handle.data)
    if handle.dtype.scalar == tl.bfloat16:
        return torch.from_numpy(data.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(data.copy())


def _to_handle(value, dtype):
    if dtype == tl.bfloat16:
        data = value.contiguous().view(torch.int16).numpy().view(np.uint16)
    else:
        data = value.numpy()
    return interpreter.TensorHandle(data, dtype)


def _cut(handle):
    """Return what a tensor core reads of float32 operands: 8 bits of exponent, 10 of mantissa."""
    bits = np.ascontiguousarray(handle.data).view(np.uint32) & np.uint32(0xFFFFE000)
    return interpreter.TensorHandle(bits.view(np.float32), handle.dtype)


def _rest(handle, cut):
    """Return what was cut off, as a tensor core reads it."""
    return _cut(interpreter.TensorHandle(handle.data - cut.data, handle.dtype))


def _cut_sums(a, b, d):
    """Return ``d + a @ b`` as tensor cores add up: sums are cut, not rounded.

    Each instruction has eight products of every element and leaves a sum that is cut towards zero,
    so that the errors of many add up. On an H200, that alone made the sums of 512 products of
    float32 numbers, split into three of TensorFloat-32, wrong by eight times as much as PyTorch's.
    """
    x, y = a.data.astype(np.float64), b.data.astype(np.float64)
    eights = x.reshape(len(x), -1, 8).swapaxes(0, 1) @ y.reshape(-1, 8, y.shape[1])
    sums = d.data.astype(np.float64)
    for products in eights:
        sums += products
        bits = sums.view(np.uint64)
        bits &= np.uint64(0xFFFFFFFFE0000000)  # float32's bits of mantissa
    return interpreter.TensorHandle(sums.astype(np.float32), d.dtype.scalar)


def _patch_once():
    """Replace the language's functions once a launch, and not at each call of a device function.

    A launch has some thirty of those, and to find the functions takes milliseconds each time: half
    of all that the interpreter does with a small problem.
    """
    patch_lang = interpreter._patch_lang
    replaced = set()  # modules, while a kernel runs
    seen = {}  # which modules a function's globals have, by the globals' identity and length
    names = {}  # of the functions to be replaced, by module or class

    def once(fn):
        globals_ = fn.__globals__  # the interpreter adds to them
        key = (id(globals_), len(globals_))
        if key not in seen:
            values = list(globals_.values())
            seen[key] = {m.__name__ for m in (tl, tl.core) if any(v is m for v in values)}
        wanted = seen[key]
        if replaced and wanted <= replaced:
            return None  # which a device function's call does not look at
        launched = not replaced
        replaced.update(wanted)
        scope = patch_lang(fn)
        if launched and scope is not None:  # Triton before 3.6 restores nothing
            triton_shortcuts.shorten(scope)
            restore = scope.restore

            def ended():
                replaced.clear()
                restore()

            scope.restore = ended
        return scope

    def named(package, builder, *scope):
        if package not in names:
            names[package] = [n for n in dir(package) if tl.core.is_builtin(getattr(package, n))]
        for name in names[package]:
            member = getattr(package, name)
            if tl.core.is_builtin(member):  # not yet replaced
                interpreter._patch_attr(package, name, member, builder, *scope)

    interpreter._patch_lang, interpreter._patch_builtin = once, named


def _remember_shapes():
    """Make what stands in types and tensors of a shape once, and not for each result.

    Every interpreted operation makes a few of them, and each a name, a check, and numbers and types
    of numbers in tuples: a third of all that is left of a small problem's time.
    """
    make_type, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    semantic = interpreter.interpreter_semantic
    broadcast = semantic.broadcast_impl_value
    of_types = {}  # by sizes
    of_tensors = {}  # by the identity of a type's shape

    def init_type(self, element_ty, shape):
        sizes = tuple(s.value if isinstance(s, tl.constexpr) else s for s in shape)
        if sizes not in of_types:
            make_type(self, element_ty, shape)
            of_types[sizes] = self.shape, self.numel, str(self.shape)
            return
        self.element_ty = element_ty
        self.shape, self.numel, text = of_types[sizes]
        self.name = f"<{text}, {element_ty}>"

    def init_tensor(self, handle, type):
        shape = type.shape if type.is_block() else None
        known = of_tensors.get(id(shape))
        if known is None or known[0] is not shape:
            make_tensor(self, handle, type)
            of_tensors[id(shape)] = shape, self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        _, self.shape, self.numel = known

    def equal_or_broadcast(lhs, rhs):
        a, b = lhs.type, rhs.type
        if a.is_block() and b.is_block() and a.shape is b.shape:
            return lhs, rhs
        return broadcast(lhs, rhs)

    tl.block_type.__init__, tl.tensor.__init__ = init_type, init_tensor
    semantic.broadcast_impl_value = equal_or_broadcast


_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _overflow(lhs, rhs, operation):
    """Assert that no integer of a result overflows.

    Triton's own check makes four interpreted operations of each addition, a third of all time, and
    then believes of every block that it is true; only single numbers are looked at. Unsigned blocks
    are left alone: random bits are made by overflow.
    """
    scalar = lhs.type.scalar
    a, b = lhs.handle.data, rhs.handle.data
    if scalar.int_bitwidth >= 64 or (scalar.is_int_unsigned() and a.size > 1):
        return
    exact = _EXACT[operation.__name__](a.astype(np.int64), b.astype(np.int64))
    fits = scalar.get_int_min_value() <= exact.min() and exact.max() <= scalar.get_int_max_value()
    assert fits, f"int{scalar.int_bitwidth} overflow detected for operation {operation.__name__}"


def _erf(self, arg):
    """Compute what Triton asks of Python's ``math.erf`` for one number after the other."""
    data = torch.from_numpy(arg.data.astype(np.float64)).erf_().numpy()
    return interpreter.TensorHandle(data.astype(arg.data.dtype), arg.dtype.scalar)


class _Semantic(interpreter.TritonSemantic):
    def binary_op_sanitize_overflow_impl(self, lhs, rhs, operation):
        _overflow(lhs, rhs, operation)


def mend():
    """Replace the interpreter's casts, products, erf and overflow check, and save it searching."""
    builder = interpreter.InterpreterBuilder
    original_cast, original_dot = builder.cast_impl, builder.create_dot

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source in _DTYPES and target in _DTYPES:
            return _to_handle(_to_torch(src).to(_DTYPES[target]), target)
        return original_cast(self, src, dst_type)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar == tl.float32 and input_precision.name in ("TF32", "TF32x3"):
            with np.errstate(invalid="ignore", over="ignore"):  # an infinity less itself
                x, y = _cut(a), _cut(b)
                if input_precision.name == "TF32x3":
                    d = _cut_sums(x, _rest(b, y), _cut_sums(_rest(a, x), y, d))
                return _cut_sums(x, y, d)
        if a.dtype.scalar != tl.float64:
            a, b = (self.cast_impl(operand, tl.float32) for operand in (a, b))
        return original_dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    original_exp, log2_e = builder.create_exp, np.float32(math.log2(math.e))

    def create_exp(self, arg):
        if arg.dtype.scalar != tl.float32:
            return original_exp(self, arg)
        # As compiled: float32's log2(e) is too small by 1.3e-8 of itself.
        with np.errstate(over="ignore"):
            power = np.exp2((arg.data * log2_e).astype(np.float64)).astype(np.float32)
        return interpreter.TensorHandle(power, arg.dtype.scalar)

    original_fma = builder.create_fma

    def create_fma(self, x, y, z):  # rounded once, which Triton 3.4's is not
        if z.dtype.scalar != tl.float32:
            return original_fma(self, x, y, z)
        whole = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(whole.astype(np.float32), z.dtype.scalar)

    builder.create_exp, builder.create_fma = create_exp, create_fma
    builder.cast_impl = cast_impl
    builder.create_dot = create_dot
    builder.create_erf = _erf
    interpreter.interpreter_semantic.binary_op_sanitize_overflow_impl = _overflow
    interpreter.TritonSemantic = _Semantic  # up to Triton 3.6 made anew for each function
    original_np_dtype, known = interpreter._get_np_dtype, {}

    def np_dtype(dtype):  # which makes a table of all of them at each call
        if type(dtype) is not tl.dtype:
            return original_np_dtype(dtype)
        if dtype.name not in known:
            known[dtype.name] = original_np_dtype(dtype)
        return known[dtype.name]

    interpreter._get_np_dtype = np_dtype
    _patch_once()
    _remember_shapes()
