"""What instructions compute, each on arrays with one element a thread.

An entry takes the types of the opcode's suffixes and the operands' values as arrays of the operand
types, and returns the result. Where hardware approximates (ex2, rcp, ...) the nearest float32 is
returned.
"""

import numpy as np

DTYPES = {
    "pred": np.bool_, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
    "s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "tf32": np.uint32,
    "bf16": np.uint16, "bf16x2": np.uint32, "f16x2": np.uint32,
}  # fmt: skip
WIDE = {"s32": np.int64, "u32": np.uint64, "s16": np.int32, "u16": np.uint32}


def fma32(a, b, c):
    """Return a * b + c, rounded once."""
    product = a.astype(np.float64) * b  # exact
    total = product + c
    bits = total.view(np.uint64) if total.ndim else np.asarray(total).view(np.uint64)
    # The sum was rounded to 53 bits; that matters where it now lies halfway between two floats,
    # or is so small that these are further apart.
    doubtful = ((bits & 0x1FFFFFFF) == 0x10000000) | (np.abs(total) < 1.2e-38)
    if doubtful.any():
        back = total - product
        lost = (product - (total - back)) + (c - back)
        even = ((bits & 1) == 0) & (lost != 0) & np.isfinite(total)
        towards = np.where(lost > 0, np.inf, -np.inf)
        total = np.where(even, np.nextafter(total, towards), total)
    return total.astype(np.float32)


def fma64(a, b, c):
    raise NotImplementedError("fma.f64")


def bfloat16(value):
    """Return float32 numbers as bfloat16 bits, rounded to nearest even."""
    bits = value.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def float16(value):
    """Return float32 numbers as float16 bits, rounded to nearest even."""
    bits = value.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), bits)


def fma_pairs(kind, a, b, c):
    """Return a * b + c of the two bfloat16 or float16 numbers of each word, rounded once."""
    result = np.uint32(0)
    for shift in (np.uint32(0), np.uint32(16)):
        numbers = []
        for word in np.broadcast_arrays(a, b, c):
            half = (word >> shift & np.uint32(0xFFFF)).astype(np.uint32)
            if kind == "bf16x2":
                numbers.append((half << np.uint32(16)).view(np.float32).astype(np.float64))
            else:
                numbers.append(half.astype(np.uint16).view(np.float16).astype(np.float64))
        total = numbers[0] * numbers[1] + numbers[2]
        single = total.astype(np.float32)
        # Odd where it is not exact: then no second rounding meets a tie that is none.
        even = (single != total) & (single.view(np.uint32) & 1 == 0) & np.isfinite(single)
        towards = np.where(total > single, np.float32(np.inf), np.float32(-np.inf))
        single = np.where(even, np.nextafter(single, towards), single)
        narrow = bfloat16(single) if kind == "bf16x2" else float16(single)
        result = result | narrow.astype(np.uint32) << shift
    return result


def tf32(value):
    """Return float32 numbers rounded to TensorFloat-32, ties away from zero."""
    bits = value.view(np.uint32)
    return np.where(np.isfinite(value), (bits + 0x1000) & 0xFFFFE000, bits).astype(np.uint32)


def multiply(parts, dtype, a, b):
    """mul: of floats, or one half of an integer product, or all of it (wide)."""
    kind = parts[-1]
    if kind.startswith("f"):
        return a * b
    if "wide" in parts:
        return a.astype(WIDE[kind]) * b.astype(WIDE[kind])
    if "hi" not in parts:
        return a * b
    if kind in WIDE:
        return ((a.astype(WIDE[kind]) * b.astype(WIDE[kind])) >> 32).astype(dtype)
    return _high64(a, b, kind == "s64")


def _high64(a, b, signed):
    x, y = np.broadcast_arrays(a.view(np.uint64), b.view(np.uint64))
    low = np.uint64(0xFFFFFFFF)
    x0, x1, y0, y1 = x & low, x >> 32, y & low, y >> 32
    middle = x1 * y0 + (x0 * y0 >> 32)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> 32) + (other >> 32)
    if not signed:
        return high
    high = high - np.where(x >> 63 == 1, y, 0) - np.where(y >> 63 == 1, x, 0)
    return high.view(np.int64)


def divide(parts, dtype, a, b):
    """div: of floats, or of integers towards zero."""
    if parts[-1].startswith("f"):
        return a / b
    b = np.where(b == 0, dtype(1), b)
    quotient = np.abs(a) // np.abs(b)
    return (quotient * (np.sign(a) * np.sign(b))).astype(dtype)


def remainder(parts, dtype, a, b):
    """rem, with the sign of the dividend."""
    return (a - divide(parts, dtype, a, b) * np.where(b == 0, dtype(1), b)).astype(dtype)


def shift(a, by, left):
    """shl, shr: a shift by as many bits as there are leaves nothing but the sign."""
    bits = a.dtype.itemsize * 8
    by = by.astype(a.dtype)
    too_far, by = by >= bits, np.minimum(by, a.dtype.type(bits - 1))
    if left:
        return np.where(too_far, a.dtype.type(0), a << by)
    return np.where(too_far, (a >> by) >> a.dtype.type(1), a >> by)


def funnel(parts, low, high, by):
    """shf: 32 bits of the 64 of two registers."""
    by = by & np.uint32(31) if "wrap" in parts else np.minimum(by, np.uint32(32))
    both = high.astype(np.uint64) << 32 | low
    if "l" in parts:
        return ((both << by.astype(np.uint64)) >> 32).astype(np.uint32)
    return (both >> by.astype(np.uint64)).astype(np.uint32)


def permute(a, b, selector):
    """prmt: four of the eight bytes of two registers, each perhaps its sign alone."""
    both = b.astype(np.uint64) << 32 | a
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for i in range(4):
        choice = selector >> 4 * i & 15
        byte = (both >> ((choice & 7).astype(np.uint64) * 8)).astype(np.uint32) & 0xFF
        byte = np.where(choice & 8, np.where(byte & 0x80, 0xFF, 0), byte)
        result |= byte.astype(np.uint32) << 8 * i
    return result


def lookup(a, b, c, table):
    """lop3: any function of three bits."""
    table = int(np.asarray(table).reshape(-1)[0])
    result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def field_of(dtype, a, start, length):
    """bfe: some bits, with their sign in a signed type."""
    bits = a.dtype.itemsize * 8
    start, length = (start & 255).astype(np.int64), (length & 255).astype(np.int64)
    wide = a.astype(np.int64 if np.issubdtype(dtype, np.signedinteger) else np.uint64)
    up = np.clip(64 - start - length, 0, 63).astype(wide.dtype)
    down = np.clip(64 - length, 0, 63).astype(wide.dtype)
    return np.where(length == 0, 0, np.where(start >= bits, 0, wide << up >> down)).astype(dtype)


def insert(a, b, start, length):
    """bfi: the low bits of a in place of some bits of b."""
    start, length = (np.minimum(n & 255, 32).astype(np.uint64) for n in (start, length))
    mask = ((np.uint64(1) << length) - np.uint64(1)) << start
    return ((b & ~mask) | (a.astype(np.uint64) << start & mask)).astype(np.uint32)


def compare(operator, a, b):
    """setp: ordered comparisons, and those with u that are true of a NaN."""
    unordered = (np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else np.False_
    if operator == "num":
        return ~unordered
    if operator == "nan":
        return unordered
    plain = operator[:2]
    result = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "lo": np.less,
        "ls": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "hi": np.greater,
        "hs": np.greater_equal,
    }[plain](a, b)  # fmt: skip
    if operator.endswith("u") and len(operator) == 3:
        return result | unordered
    return result & ~unordered


def convert(parts, a):
    """cvt: to the first type of the suffixes from the last (of two floats to a packed pair, see
    the machine)."""
    to, source = parts[-2], parts[-1]
    if to == "tf32":
        return tf32(a)
    if to in ("bf16", "f16") and source == "f32":
        return bfloat16(a) if to == "bf16" else float16(a)
    if source in ("f16", "bf16") and to == "f32":
        if source == "f16":
            return a.astype(np.float32)
        return (a.astype(np.uint32) << 16).view(np.float32)
    if source.startswith("f") and not to.startswith("f"):
        rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
        (mode,) = (part for part in parts if part in rounding)
        limits = np.iinfo(DTYPES[to])
        value = np.nan_to_num(rounding[mode](a.astype(np.float64)), nan=0.0)
        return np.clip(value, limits.min, limits.max).astype(DTYPES[to])
    if source.startswith("f") and any(part in ("rzi", "rni", "rmi", "rpi") for part in parts):
        return {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[parts[1]](a)
    return a.astype(DTYPES[to])


def flushed(parts, value):
    """Return float32 numbers with subnormal ones as zero, where the opcode says ftz."""
    if "ftz" not in parts or value.dtype != np.float32:
        return value
    return np.where(np.abs(value) < np.float32(2.0**-126), np.copysign(np.float32(0), value), value)


def _two(function):
    return lambda parts, dtype, a, b: function(a, b)


def _approximate(function):
    return lambda parts, dtype, a: function(a.astype(np.float64)).astype(dtype)


def _absolute(parts, dtype, a):
    return np.abs(a)


def _smallest(function, for_nan):
    return lambda parts, dtype, a, b: (for_nan if dtype(0).dtype.kind == "f" else function)(a, b)


# By the opcode's first part: all operands and the result have the type of the last suffix.
SAME_TYPE = {
    "add": _two(np.add),
    "sub": _two(np.subtract),
    "mul": multiply,
    "mul24": multiply,
    "div": divide,
    "rem": remainder,
    "min": _smallest(np.minimum, np.fmin),
    "max": _smallest(np.maximum, np.fmax),
    "and": _two(np.bitwise_and),
    "or": _two(np.bitwise_or),
    "xor": _two(np.bitwise_xor),
    "not": lambda parts, dtype, a: ~a,
    "neg": lambda parts, dtype, a: (-a).astype(dtype),
    "abs": _absolute,
    "copysign": lambda parts, dtype, a, b: np.copysign(b, a),
    "sqrt": _approximate(np.sqrt),
    "rsqrt": _approximate(lambda a: 1 / np.sqrt(a)),
    "rcp": _approximate(lambda a: 1 / a),
    "ex2": _approximate(np.exp2),
    "lg2": _approximate(np.log2),
    "tanh": _approximate(np.tanh),
    "lop3": lambda parts, dtype, a, b, c, table: lookup(a, b, c, table),
    "shf": lambda parts, dtype, a, b, c: funnel(parts, a, b, c),
    "bfi": lambda parts, dtype, a, b, c, d: insert(a, b, c, d),
    "prmt": lambda parts, dtype, a, b, c: permute(a, b, c),
    "mov": lambda parts, dtype, a: a,
    "popc": lambda parts, dtype, a: np.bitwise_count(a).astype(np.uint32),
}
