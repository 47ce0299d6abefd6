"""What the lanes of a warp do together: values are arrays of shape [warps, 32]."""

import numpy as np

LANES = 32
_LANE = np.arange(LANES)
_GROUP, _THREAD = _LANE // 4, _LANE % 4


def _places(rows, columns):
    """Return the index of the numbers of each lane's registers, [warps, 32, numbers]."""
    return slice(None), np.stack(rows, -1), np.stack(columns, -1)


# Rows and columns of a lane's numbers in A, B and C, by the bits of A's and B's: see `mma`.
_A = {
    32: _places(
        [_GROUP + 8 * (r % 2) for r in range(4)], [_THREAD + 4 * (r // 2) for r in range(4)]
    ),
    16: _places(
        [_GROUP + 8 * (r % 2) for r in range(4) for e in range(2)],
        [8 * (r // 2) + 2 * _THREAD + e for r in range(4) for e in range(2)],
    ),
}
_B = {
    32: _places([_THREAD + 4 * r for r in range(2)], [_GROUP] * 2),
    16: _places([8 * r + 2 * _THREAD + e for r in range(2) for e in range(2)], [_GROUP] * 4),
}
_C = _places([_GROUP + 8 * (r // 2) for r in range(4)], [2 * _THREAD + r % 2 for r in range(4)])


def _halves(words, kind):
    """[..., registers] of packed 16-bit numbers to float64 [..., registers, 2]."""
    pair = np.stack([words & 0xFFFF, words >> 16], -1)
    if kind == "f16":
        return pair.astype(np.uint16).view(np.float16).astype(np.float64)
    return (pair.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def mma(opcode, a, b, c):
    """Return d of ``mma.sync.aligned.m16n8k{8,16}.row.col.f32.<kind>.<kind>.f32``.

    The manual's fragments, with g = lane / 4 and t = lane % 4. For 16-bit numbers (k16): A's
    register r holds row g (r even) or g + 8, columns 2t and 2t + 1, of the left (r < 2) or right
    half; B's register r holds rows 2t, 2t + 1 of half r, column g. For tf32 (k8) a register is one
    number: column t, and t + 4 in the other half. C: rows g and g + 8, columns 2t and 2t + 1.

    Args:
        a, b, c: [warps, 32, registers] as uint32.
    """
    parts = opcode.split(".")
    kind = parts[7]
    if parts[3] not in ("m16n8k16", "m16n8k8") or parts[4:6] != ["row", "col"]:
        raise NotImplementedError(opcode)
    depth = int(parts[3].partition("k")[2])
    if (kind == "tf32") != (depth == 8):
        raise NotImplementedError(opcode)
    warps = a.shape[0]
    left = np.empty((warps, 16, depth))
    right = np.empty((warps, depth, 8))
    if kind == "tf32":
        # The hardware looks at 19 bits of each number.
        bits, numbers = 32, [(x & 0xFFFFE000).view(np.float32) for x in (a, b)]
    else:
        bits, numbers = 16, [_halves(x, kind).reshape(warps, LANES, -1) for x in (a, b)]
    left[_A[bits]], right[_B[bits]] = numbers
    factors = left.transpose(2, 0, 1)[..., None], right.transpose(1, 0, 2)[:, :, None]
    products = np.multiply(*factors, order="C")
    # One after another, as the simulator adds, so that its bits are met.
    sums = np.add.reduce(products, axis=0, initial=0.0)
    d = c.view(np.float32).astype(np.float64) + sums[_C]
    return d.astype(np.float32).view(np.uint32)


def ldmatrix(opcode, rows):
    """Return the registers of ``ldmatrix...m8n8.x{1,2,4}[.trans].shared.b16``.

    Args:
        rows: [warps, 32, 16] bytes: what lies at each lane's address. Lanes 8i .. 8i + 7 give the
            rows of matrix i; lanes beyond the last matrix give nothing.
    """
    parts = opcode.split(".")
    if "m8n8" not in parts or "b16" not in parts:
        raise NotImplementedError(opcode)
    count = int(next(part for part in parts if part in ("x1", "x2", "x4"))[1:])
    numbers = np.ascontiguousarray(rows).view(np.uint16)  # [warps, 32, 8]
    result = np.empty((*rows.shape[:2], count), np.uint32)
    g, t = _LANE // 4, _LANE % 4
    for i in range(count):
        matrix = numbers[:, 8 * i : 8 * i + 8]
        if "trans" in parts:
            matrix = matrix.transpose(0, 2, 1)
        low, high = matrix[:, g, 2 * t], matrix[:, g, 2 * t + 1]
        result[:, :, i] = low.astype(np.uint32) | high.astype(np.uint32) << 16
    return result


def shuffle(mode, value, by, clamp):
    """Return what each lane receives by shfl.sync, and whether its source was in range."""
    by, clamp = by & 31, clamp.astype(np.int64)
    most, segment = clamp & 31, clamp >> 8 & 31
    highest = (_LANE & segment) | (most & ~segment)
    lowest = _LANE & segment
    source = {
        "up": lambda: _LANE - by,
        "down": lambda: _LANE + by,
        "bfly": lambda: _LANE ^ by,
        "idx": lambda: lowest | (by & ~segment),
    }[mode]()
    inside = source >= highest if mode == "up" else source <= highest
    source = np.where(inside, source, _LANE)
    return np.take_along_axis(value, source, axis=1), inside


def vote(mode, predicate):
    """Return vote.sync's answer: any, all, uni, or the ballot's bits."""
    if mode == "ballot":
        bits = (predicate.astype(np.uint64) << _LANE.astype(np.uint64)).sum(1).astype(np.uint32)
        return np.repeat(bits[:, None], LANES, 1)
    answer = {"any": predicate.any(1), "all": predicate.all(1)}[mode]
    return np.repeat(answer[:, None], LANES, 1)
