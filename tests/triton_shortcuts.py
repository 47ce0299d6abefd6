"""Shortcuts through Triton's interpreter for what kernels do most, to the same bits.

The interpreter asks Triton's compiler for the types, casts and shapes of every addition: forty
microseconds, of which numpy's part is one. Here the everyday cases go to numpy at once: real
numbers and integers of one type, or with a number, and pointers and what lies behind them. All else
goes Triton's way, errors above all: a shortcut is taken only where Triton would raise none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Tensor, _Handle, _Constant = tl.tensor, interpreter.TensorHandle, tl.constexpr
# All by identity, since to compare types takes longer than to add.
# Numpy's type, and the smallest and the largest number.
_INTEGERS = {
    id(kind): (np.dtype(name), kind.get_int_min_value(), kind.get_int_max_value())
    for kind, name in ((tl.int32, "int32"), (tl.int64, "int64"), (tl.uint32, "uint32"))
}
_REAL = {
    id(kind): (np.dtype(name), -np.inf, np.inf)
    for kind, name in ((tl.float32, "float32"), (tl.float64, "float64"))
}
_NUMBERS = {**_INTEGERS, **_REAL}
_COMMON = {}  # of two types, and numpy's
for _wide, *_narrow in (
    (tl.int64, tl.int32),
    (tl.float32, tl.int32, tl.int64),
    (tl.float64, tl.int32, tl.int64, tl.float32),
):
    for _one in _narrow:
        _COMMON[id(_wide), id(_one)] = _COMMON[id(_one), id(_wide)] = _wide, _NUMBERS[id(_wide)][0]
_HALF = {id(tl.float16): np.dtype("float16"), id(tl.bfloat16): np.dtype("uint16")}
_STORED = {**_HALF, **{key: numbers[0] for key, numbers in _NUMBERS.items()}}
_BITS = {**_STORED, id(tl.int16): np.dtype("int16")}

# What the builder is told of caches, in one argument or two.
_BUILDER = interpreter.InterpreterBuilder
_LOADED = (None,) * (len(inspect.signature(_BUILDER.create_masked_load).parameters) - 5)
_KEPT = (None,) * (len(inspect.signature(_BUILDER.create_masked_store).parameters) - 4)

_pointers: dict[Any, Any] = {}  # one of all that are equal, since every launch makes new ones
_ranges: dict[Any, Any] = {}


def _handle(data: Any, dtype: Any) -> Any:
    new = object.__new__(_Handle)
    new.data, new.dtype, new.attr = data, dtype, {}
    return new


def _tensor(data: Any, dtype: Any, block: Any) -> Any:
    """Return a tensor as its class would make it; ``block`` tells one of one number from it."""
    shape = data.shape if block else ()
    try:
        made = dtype.made[shape]
    except (AttributeError, KeyError):
        one = _Tensor(_Handle(data, dtype), tl.block_type(dtype, list(shape)) if block else dtype)
        made = one.type, one.dtype, one.shape, one.numel
        dtype.__dict__.setdefault("made", {})[shape] = made
    new = object.__new__(_Tensor)
    new.handle = _handle(data, dtype)
    new.type, new.dtype, new.shape, new.numel = made
    return new


def _number(value: Any, dtype: Any) -> Any:
    """Return a number of Python's as Triton gives it a tensor's type, or None."""
    if type(value) is _Constant:
        value = value.value
    numbers = _NUMBERS.get(id(dtype))
    if numbers is None or not (type(value) is int or (type(value) is float and id(dtype) in _REAL)):
        return None
    kind, smallest, largest = numbers
    return np.array([value], kind) if smallest <= value <= largest else None


def _operands(x: Any, y: Any) -> Any:
    """Return both in numpy, their type and whether they make a block; None: no everyday case."""
    dtype = x.dtype
    if type(y) is not _Tensor:
        b = _number(y, dtype)
        return None if b is None else (x.handle.data, b, dtype, x.shape)
    a, b = x.handle.data, y.handle.data
    if y.dtype is not dtype:
        common = _COMMON.get((id(dtype), id(y.dtype)))
        if common is None:
            return None
        dtype, kind = common
        a, b = a.astype(kind, copy=False), b.astype(kind, copy=False)
    elif id(dtype) not in _NUMBERS:
        return None
    return a, b, dtype, x.shape or y.shape


def _one_pointer(dtype: Any) -> Any:
    return _pointers.setdefault((id(dtype.element_ty), dtype.const, dtype.address_space), dtype)


def _moved(pointer: Any, offset: Any) -> Any:
    """Return a pointer plus an offset, or None."""
    if type(offset) is _Tensor:
        if offset.dtype is not tl.int32 and offset.dtype is not tl.int64:
            return None
        by, block = offset.handle.data, pointer.shape or offset.shape
    else:
        by, block = _number(offset, tl.int64), pointer.shape
        if by is None:
            return None
    dtype = pointer.dtype
    width = max(1, dtype.element_ty.primitive_bitwidth // 8)
    return _tensor(pointer.handle.data + width * by.astype(np.uint64), _one_pointer(dtype), block)


def _arithmetic(numpy: Any, reflected: bool = False) -> Callable[..., Any]:
    moves = numpy is np.add and not reflected

    def shortcut(slow: Any, x: Any, y: Any) -> Any:
        found = _operands(x, y)
        if found is None:
            moved = _moved(x, y) if moves and x.dtype.is_ptr() else None
            return slow(x, y) if moved is None else moved
        a, b, dtype, block = found
        if reflected:
            a, b = b, a
        if dtype is tl.int32:
            wide = numpy(a, b, dtype=np.int64)
            data = wide.astype(np.int32)
            if np.count_nonzero(data == wide) < data.size:
                return slow(x, y)  # which says that an index overflows
        else:
            data = numpy(a, b)
            if dtype is tl.uint32 and data.size == 1:
                return slow(x, y)
        return _tensor(data, dtype, block)

    return shortcut


def _division(slow: Any, x: Any, y: Any) -> Any:
    found = _operands(x, y)
    if found is None or id(found[2]) not in _REAL:
        return slow(x, y)
    return _tensor(np.divide(found[0], found[1]), *found[2:])


def _whole_division(rest: bool) -> Callable[..., Any]:
    def shortcut(slow: Any, x: Any, y: Any) -> Any:
        found = _operands(x, y)
        if found is None or id(found[2]) in _REAL:
            return slow(x, y)
        a, b, *kind = found
        over = np.fmod(a, b)
        return _tensor(over if rest else (a - over) // b, *kind)

    return shortcut


def _comparison(numpy: Any) -> Callable[..., Any]:
    def shortcut(slow: Any, x: Any, y: Any) -> Any:
        found = _operands(x, y)
        if found is None:
            return slow(x, y)
        return _tensor(numpy(found[0], found[1]), tl.int1, found[3])

    return shortcut


def _bitwise(numpy: Any, logical: bool = True) -> Callable[..., Any]:
    def shortcut(slow: Any, x: Any, y: Any) -> Any:
        if logical and x.dtype is tl.int1 and type(y) is _Tensor and y.dtype is tl.int1:
            return _tensor(numpy(x.handle.data, y.handle.data), tl.int1, x.shape or y.shape)
        found = _operands(x, y)
        if found is None or id(found[2]) in _REAL:
            return slow(x, y)
        return _tensor(numpy(found[0], found[1]), *found[2:])

    return shortcut


def _negation(slow: Any, x: Any) -> Any:
    return _tensor(-x.handle.data, x.dtype, x.shape) if id(x.dtype) in _REAL else slow(x)


def _getitem(slow: Any, x: Any, slices: Any) -> Any:
    """Insert axes, as ``x[:, None]`` does."""
    if type(slices) is not tuple or not x.shape:
        return slow(x, slices)
    axes = 0
    for each in slices:
        if each is not None:
            axes += 1
            if each != slice(None):
                return slow(x, slices)
    if axes != len(x.shape):
        return slow(x, slices)
    dtype = _one_pointer(x.dtype) if x.dtype.is_ptr() else x.dtype
    return _tensor(x.handle.data[slices], dtype, True)


def _to(slow: Any, x: Any, dtype: Any, *more: Any, bitcast: Any = False, **named: Any) -> Any:
    if type(dtype) is _Constant:
        dtype = dtype.value
    if more or named or type(bitcast) is not bool:
        return slow(x, dtype, *more, bitcast=bitcast, **named)
    source, data = x.dtype, x.handle.data
    if dtype is source:
        return x
    if bitcast:
        kind = _BITS.get(id(dtype))
        if kind is None or id(source) not in _BITS or kind.itemsize != data.itemsize:
            return slow(x, dtype, bitcast=True)
        data = data.view(kind)
    elif (id(source) in _HALF and dtype is tl.float32) or (
        source is tl.float32 and id(dtype) in _HALF
    ):
        data = interpreter.interpreter_builder.cast_impl(x.handle, dtype).data
    elif (source is tl.int32 or source is tl.int64) and id(dtype) in _NUMBERS:
        data = data.astype(_NUMBERS[id(dtype)][0])
    else:
        return slow(x, dtype)
    return _tensor(data, dtype, x.shape)


def _spread(value: Any, pointer: Any) -> Any:
    """Return a tensor's data in the shape of a pointer, or None where Triton has to see to it."""
    data, shape = value.handle.data, pointer.handle.data.shape
    if data.shape == shape and bool(value.shape) == bool(pointer.shape):
        return data
    if not pointer.shape or (value.shape and data.ndim != len(shape)):
        return None
    if any(n not in (1, m) for n, m in zip(data.shape[::-1], shape[::-1], strict=False)):
        return None
    return np.broadcast_to(data, shape)


def _behind(pointer: Any, mask: Any) -> Any:
    """Return addresses, which of them count, and numpy's type of what lies there, or None."""
    if type(pointer) is not _Tensor or not pointer.dtype.is_ptr():
        return None
    kind, at = _STORED.get(id(pointer.dtype.element_ty)), pointer.handle.data
    if kind is None:
        return None
    if mask is None:
        return at, _handle(np.ones(at.shape, bool), tl.int1), kind
    if type(mask) is not _Tensor or mask.dtype is not tl.int1:
        return None
    counts = _spread(mask, pointer)
    return None if counts is None else (at, _handle(counts, tl.int1), kind)


def _load(slow: Any, pointer: Any, mask: Any = None, other: Any = None, **more: Any) -> Any:
    found = None if more else _behind(pointer, mask)
    if found is None or not (other is None or (mask is not None and type(other) in (int, float))):
        return slow(pointer, mask=mask, other=other, **more)
    at, counts, kind = found
    element = pointer.dtype.element_ty
    if other and id(element) not in _REAL:
        return slow(pointer, mask=mask, other=other)
    filler = _handle(np.full(at.shape, other or 0, kind), element)
    builder = interpreter.interpreter_builder  # through which benchmarks count what is loaded
    handle = builder.create_masked_load(pointer.handle, counts, filler, *_LOADED, False)
    return _tensor(handle.data, element, pointer.shape)


def _store(slow: Any, pointer: Any, value: Any, mask: Any = None, **more: Any) -> Any:
    found = None if more else _behind(pointer, mask)
    right = found and type(value) is _Tensor and value.dtype is pointer.dtype.element_ty
    data = _spread(value, pointer) if right and not pointer.dtype.const else None
    if data is None:
        return slow(pointer, value, mask=mask, **more)
    handle = _handle(data, value.dtype)
    builder = interpreter.interpreter_builder
    return builder.create_masked_store(pointer.handle, handle, found[1], *_KEPT)


def _where(slow: Any, condition: Any, x: Any, y: Any) -> Any:
    found = None
    if type(condition) is _Tensor and condition.dtype is tl.int1:
        if type(x) is _Tensor:
            found = _operands(x, y)
        elif type(y) is _Tensor and (found := _operands(y, x)):
            found = found[1], found[0], *found[2:]
    if found is None:
        return slow(condition, x, y)
    a, b, dtype, block = found
    return _tensor(np.where(condition.handle.data, a, b), dtype, condition.shape or block)


def _arange(slow: Any, start: Any, end: Any) -> Any:
    if type(start) is not int or type(end) is not int:
        return slow(start, end)
    if (start, end) not in _ranges:
        _ranges[start, end] = slow(start, end).handle.data
    return _tensor(_ranges[start, end], tl.int32, True)


def _full(slow: Any, shape: Any, value: Any, dtype: Any) -> Any:
    sizes = [s.value if type(s) is _Constant else s for s in shape]
    number = _number(value, dtype)
    if number is None or not sizes or any(s < 1 or s & (s - 1) for s in sizes):
        return slow(shape, value, dtype)
    return _tensor(np.full(sizes, number[0]), dtype, True)


def _zeros(slow: Any, shape: Any, dtype: Any) -> Any:
    return _full(lambda shape, _, dtype: slow(shape, dtype), shape, 0, dtype)


def _sum(slow: Any, input: Any, axis: Any = None, **more: Any) -> Any:
    everyday = type(input) is _Tensor and id(input.dtype) in _REAL and type(axis) is int
    if more or not (everyday and 0 <= axis < len(input.shape)):
        return slow(input, axis, **more)
    data = np.sum(input.handle.data, axis=axis)
    block = len(input.shape) > 1
    return _tensor(data if block else np.array([data]), input.dtype, block)


OF_TENSORS = {
    "__add__": _arithmetic(np.add),
    "__radd__": _arithmetic(np.add, reflected=True),
    "__sub__": _arithmetic(np.subtract),
    "__rsub__": _arithmetic(np.subtract, reflected=True),
    "__mul__": _arithmetic(np.multiply),
    "__rmul__": _arithmetic(np.multiply, reflected=True),
    "__truediv__": _division,
    "__floordiv__": _whole_division(rest=False),
    "__mod__": _whole_division(rest=True),
    "__neg__": _negation,
    "__lt__": _comparison(np.less),
    "__le__": _comparison(np.less_equal),
    "__gt__": _comparison(np.greater),
    "__ge__": _comparison(np.greater_equal),
    "__eq__": _comparison(np.equal),
    "__ne__": _comparison(np.not_equal),
    "__and__": _bitwise(np.bitwise_and),
    "__or__": _bitwise(np.bitwise_or),
    "__xor__": _bitwise(np.bitwise_xor),
    "__lshift__": _bitwise(np.left_shift, logical=False),
    "__rshift__": _bitwise(np.right_shift, logical=False),
    "__getitem__": _getitem,
    "to": _to,
}
OF_THE_LANGUAGE = {
    "load": _load,
    "store": _store,
    "where": _where,
    "arange": _arange,
    "full": _full,
    "zeros": _zeros,
    "sum": _sum,
}


def shorten(scope: Any) -> None:
    """Put the shortcuts before what a launch has replaced; ``scope`` takes them away again."""
    for owner, shortcuts in ((_Tensor, OF_TENSORS), (tl, OF_THE_LANGUAGE)):
        for name, shortcut in shortcuts.items():
            scope.set_attr(owner, name, _before(shortcut, getattr(owner, name)))


def _before(shortcut: Callable[..., Any], slow: Callable[..., Any]) -> Callable[..., Any]:
    def through(*given: Any, **named: Any) -> Any:
        try:
            return shortcut(slow, *given, **named)
        except ValueError:  # of shapes that do not fit Triton says more than numpy
            return slow(*given, **named)

    return through
