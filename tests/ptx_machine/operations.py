"""From an instruction to a function of the active threads' mask that carries it out."""

import numpy as np

from . import arithmetic, warp
from . import memory as spaces
from .arithmetic import DTYPES
from .operands import PARAM_START, members

_IGNORED = {"membar", "fence", "griddepcontrol", "discard", "nanosleep"}


def build(block, instruction):
    """Return the function, or one that says that the machine does not know the instruction."""
    first = instruction.parts[0]
    if first in _IGNORED:
        return lambda mask: None
    special = _SPECIAL.get(first)
    if special is not None:
        return lambda mask: special(block, instruction, mask)
    operation = arithmetic.SAME_TYPE.get(first)
    if operation is None:
        return lambda mask: _unknown(instruction)
    return _same_type(block, instruction, operation)


def _unknown(instruction):
    raise NotImplementedError(f"the PTX machine does not know: {instruction.text}")


def _same_type(block, instruction, operation):
    parts, text = instruction.parts, instruction.text
    kind = next(part for part in reversed(parts) if part in DTYPES)
    dtype = DTYPES[kind]
    to, *sources = instruction.operands
    registers = block.registers
    flushes = dtype is np.float32 and "ftz" in parts

    def run(mask):
        values = [registers.read(name, kind, mask, text) for name in sources]
        if flushes:
            values = [arithmetic.flushed(parts, value) for value in values]
        value = operation(parts, dtype, *values)
        if flushes:
            value = arithmetic.flushed(parts, value)
        registers.write(to, value, mask)

    return run


def _shift(block, instruction, mask):
    kind = instruction.parts[-1]
    to, a, by = instruction.operands
    registers, text = block.registers, instruction.text
    value = registers.read(a, kind, mask, text)
    distance = registers.read(by, "u32", mask, text)
    registers.write(to, arithmetic.shift(value, distance, instruction.parts[0] == "shl"), mask)


def _multiply_add(block, instruction, mask):
    parts, text, registers = instruction.parts, instruction.text, block.registers
    to, a, b, c = instruction.operands
    kind = parts[-1]
    a, b = (registers.read(name, kind, mask, text) for name in (a, b))
    if kind in ("bf16x2", "f16x2"):
        c = registers.read(c, kind, mask, text)
        registers.write(to, arithmetic.fma_pairs(kind, a, b, c), mask)
        return
    sum_kind = (
        {"s32": "s64", "u32": "u64", "s16": "s32", "u16": "u32"}[kind] if "wide" in parts else kind
    )
    c = registers.read(c, sum_kind, mask, text)
    if kind == "f32":
        value = arithmetic.flushed(parts, arithmetic.fma32(*np.broadcast_arrays(a, b, c)))
    elif kind.startswith("f"):
        value = arithmetic.fma64(a, b, c)
    else:
        value = arithmetic.multiply(parts, DTYPES[kind], a, b) + c
    registers.write(to, value, mask)


def _set_predicate(block, instruction, mask):
    parts, text, registers = instruction.parts, instruction.text, block.registers
    to, a, b, *other = instruction.operands
    kind = parts[-1]
    value = arithmetic.compare(
        parts[1], *(registers.read(name, kind, mask, text) for name in (a, b))
    )
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    names = to.split("|")
    for name, answer in zip(names, (value, ~value), strict=False):
        if other:
            negated, with_what = other[0].startswith("!"), other[0].lstrip("!")
            third = registers.read(with_what, "pred", mask, text)
            answer = combine[parts[2]](answer, ~third if negated else third)
        registers.write(name, answer, mask)


def _select(block, instruction, mask):
    registers, text, kind = block.registers, instruction.text, instruction.parts[-1]
    to, a, b, chooser = instruction.operands
    chosen = registers.read(chooser, "pred", mask, text)
    # Only what is chosen has to be defined.
    value = np.where(
        chosen,
        registers.read(a, kind, mask & chosen, text),
        registers.read(b, kind, mask & ~chosen, text),
    )
    registers.write(to, value.astype(DTYPES[kind]), mask)


def _move(block, instruction, mask):
    registers, text, kind = block.registers, instruction.text, instruction.parts[-1]
    to, source = instruction.operands
    targets, sources = members(to), members(source)
    if len(targets) == len(sources):
        # A register that nobody wrote may be moved about, as long as nobody uses it.
        value = registers.read(source, kind, mask, text, quiet=True)
        registers.write(to, value, mask, registers.is_defined(source))
        return
    bits = np.dtype(DTYPES[kind]).itemsize * 8 // max(len(targets), len(sources))
    if len(sources) == 1:
        whole = registers.read(source, f"u{bits * len(targets)}", mask, text)
        for i, name in enumerate(targets):
            piece = whole >> np.array(bits * i, whole.dtype)
            registers.write(name, piece.astype(f"u{bits // 8}"), mask)
        return
    whole = np.zeros(block.threads, f"u{bits * len(sources) // 8}")
    for i, name in enumerate(sources):
        piece = registers.read(name, f"u{bits}", mask, text).astype(whole.dtype)
        whole |= piece << np.array(bits * i, whole.dtype)
    registers.write(to, whole, mask)


def _convert(block, instruction, mask):
    parts, text, registers = instruction.parts, instruction.text, block.registers
    to, *sources = instruction.operands
    kinds = [part for part in parts if part in DTYPES]
    values = [registers.read(name, kinds[1], mask, text) for name in sources]
    if len(values) == 2:  # the first operand goes to the upper half
        narrow = arithmetic.bfloat16 if kinds[0] == "bf16x2" else arithmetic.float16
        high, low = (narrow(np.broadcast_to(value, block.threads)) for value in values)
        value = high.astype(np.uint32) << 16 | low
    else:
        value = arithmetic.convert(parts, np.asarray(values[0]))
    registers.write(to, value, mask)


def _convert_address(block, instruction, mask):
    registers, text = block.registers, instruction.text
    to, source = instruction.operands
    value = registers.read(source, instruction.parts[-1], mask, text)
    if "shared" in instruction.parts:
        base = value.dtype.type(spaces.SHARED)
        value = value - base if "to" in instruction.parts else value + base
    registers.write(to, value, mask)


def _bit_field(block, instruction, mask):
    registers, text, kind = block.registers, instruction.text, instruction.parts[-1]
    to, a, start, length = instruction.operands
    values = [registers.read(a, kind, mask, text)]
    values += [registers.read(name, "u32", mask, text) for name in (start, length)]
    registers.write(to, arithmetic.field_of(DTYPES[kind], *values), mask)


def _space(instruction, addresses):
    for name in ("global", "shared", "param"):
        if any(part.startswith(name) for part in instruction.parts[1:]):
            return name, addresses
    generic = (addresses >= spaces.SHARED) & (addresses < spaces.SHARED + 2**24)
    if generic.all():
        return "shared", addresses - spaces.SHARED
    if generic.any():
        raise RuntimeError("generic addresses of shared and of global memory in one access")
    return "global", addresses


def _access(block, instruction, operand, mask, size):
    """Return the memory and where in it the active threads' accesses begin."""
    address = block.registers.address(operand, mask, instruction.text)
    addresses = np.broadcast_to(address, block.threads)[mask]
    space, addresses = _space(instruction, addresses)
    if space == "param":
        offsets = addresses - PARAM_START
        if (offsets < 0).any() or (offsets + size > block.params.size).any():
            raise IndexError("out of bounds of the parameters")
        return block.params, offsets
    if space == "shared":
        return block.shared, block.shared_offsets(addresses, size)
    return block.memory.data, block.memory.offsets(addresses, size)


def _load(block, instruction, mask):
    targets, operand = members(instruction.operands[0]), instruction.operands[1]
    dtype = np.dtype(DTYPES[instruction.parts[-1]])
    data, offsets = _access(block, instruction, operand, mask, dtype.itemsize * len(targets))
    rows = spaces.gather(data, offsets, dtype.itemsize * len(targets)).view(dtype)
    for i, name in enumerate(targets):
        value = np.zeros(block.threads, dtype)
        value[mask] = rows[:, i]
        block.registers.write(name, value, mask)


def _store(block, instruction, mask):
    operand, source = instruction.operands
    kind = instruction.parts[-1]
    columns = [
        np.broadcast_to(block.registers.read(name, kind, mask, instruction.text), block.threads)
        for name in members(source)
    ]
    rows = np.ascontiguousarray(np.stack(columns, -1)[mask]).view(np.uint8)
    data, offsets = _access(block, instruction, operand, mask, rows.shape[1])
    spaces.scatter(data, offsets, rows)


def _atomic(block, instruction, mask):
    """One thread after another, which is one of the orders that a GPU may take."""
    parts, registers, text = instruction.parts, block.registers, instruction.text
    to, operand, *sources = (
        instruction.operands if parts[0] == "atom" else ("_", *instruction.operands)
    )
    kind = parts[-1]
    if DTYPES[kind] in (np.float16, np.float32, np.float64):
        raise RuntimeError("a float atomic: its sum depends on the order")
    size = np.dtype(DTYPES[kind]).itemsize
    values = [
        np.broadcast_to(registers.read(name, kind, mask, text), block.threads)[mask]
        for name in sources
    ]
    data, offsets = _access(block, instruction, operand, mask, size)
    before = np.zeros(block.threads, DTYPES[kind])
    old = []
    for i, offset in enumerate(offsets):
        cell = data[offset : offset + size].view(DTYPES[kind])
        old.append(cell[0])
        cell[0] = _ATOMICS[next(p for p in parts if p in _ATOMICS)](
            cell[0], *(value[i] for value in values)
        )
    before[mask] = old
    registers.write(to, before, mask)


_ATOMICS = {
    "add": lambda old, value: old + value,
    "max": max,
    "min": min,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "exch": lambda old, value: value,
    "inc": lambda old, value: 0 if old >= value else old + 1,
    "cas": lambda old, compared, value: value if old == compared else old,
}


def _copy(block, instruction, mask):
    parts = instruction.parts
    if "commit_group" in parts:
        block.groups[mask] += 1
        return
    if "wait_group" in parts or "wait_all" in parts:
        if "wait_all" in parts:
            block.groups[mask] += 1
        block.finish_copies(mask, int(instruction.operands[0]) if instruction.operands else 0)
        return
    registers, text = block.registers, instruction.text
    to, source, size, *real = instruction.operands
    size = int(size)
    amounts = np.full(block.threads, size)
    if real:  # how many bytes are read; the others are zeros
        amounts = np.broadcast_to(registers.read(real[0], "u32", mask, text), block.threads)
    if not np.isin(amounts[mask], (0, size)).all():
        raise NotImplementedError(text)
    rows = np.zeros((block.threads, size), np.uint8)
    reads = mask & (amounts == size)
    block.memory.near += int((mask & ~reads).sum())
    if reads.any():
        address = np.broadcast_to(registers.address(source, mask, text), block.threads)
        offsets = block.memory.offsets(address[reads], size)
        block.memory.count_near(address[reads])
        rows[reads] = spaces.gather(block.memory.data, offsets, size)
    target = np.broadcast_to(registers.address(to, mask, text), block.threads)[mask]
    block.start_copy(mask, target, rows[mask])


def _prefetch(block, instruction, mask):
    address = block.registers.address(instruction.operands[0], mask, instruction.text)
    block.memory.prefetch(np.broadcast_to(address, block.threads)[mask])


def _by_warp(block, names, mask, text):
    """Return registers as uint32 [active warps, 32, registers]."""
    warps = block.together(mask)
    columns = [
        np.broadcast_to(block.registers.read(name, "b32", mask, text), block.threads)
        for name in names
    ]
    return np.stack(columns, -1).reshape(-1, warp.LANES, len(names))[warps], warps


def _write_warps(block, names, values, warps, mask):
    if not warps.all():
        all_warps = np.zeros((warps.size, *values.shape[1:]), values.dtype)
        all_warps[warps] = values
        values = all_warps
    for i, name in enumerate(names):
        block.registers.write(name, values[:, :, i].reshape(-1), mask)


def _mma(block, instruction, mask):
    d, *sources = (members(operand) for operand in instruction.operands)
    a, b, c = (_by_warp(block, names, mask, instruction.text)[0] for names in sources)
    _write_warps(block, d, warp.mma(instruction.opcode, a, b, c), block.together(mask), mask)


def _load_matrix(block, instruction, mask):
    targets, operand = members(instruction.operands[0]), instruction.operands[1]
    warps = block.together(mask)
    address = np.broadcast_to(
        block.registers.address(operand, mask, instruction.text), block.threads
    )
    used = np.arange(block.threads) % warp.LANES < 8 * len(targets)  # the other lanes' are not read
    rows = np.zeros((block.threads, 16), np.uint8)
    wanted = mask & used
    rows[wanted] = spaces.gather(block.shared, block.shared_offsets(address[wanted], 16), 16)
    values = warp.ldmatrix(instruction.opcode, rows.reshape(-1, warp.LANES, 16)[warps])
    _write_warps(block, targets, values, warps, mask)


def _shuffle(block, instruction, mask):
    to, value, by, clamp, _ = instruction.operands
    to, _, in_range = to.partition("|")
    operands, warps = _by_warp(block, [value, by, clamp], mask, instruction.text)
    operands = operands.astype(np.int64)
    received, inside = warp.shuffle(
        instruction.parts[2], operands[:, :, 0], operands[:, :, 1], operands[:, :, 2]
    )
    _write_warps(block, [to], received.astype(np.uint32)[:, :, None], warps, mask)
    if in_range:
        _write_warps(block, [in_range], inside[:, :, None], warps, mask)


def _vote(block, instruction, mask):
    to, predicate, _ = instruction.operands
    warps = block.together(mask)
    value = block.registers.read(predicate.lstrip("!"), "pred", mask, instruction.text)
    value = np.broadcast_to(~value if predicate.startswith("!") else value, block.threads)
    answer = warp.vote(instruction.parts[2], value.reshape(-1, warp.LANES)[warps])
    _write_warps(block, [to], answer[:, :, None], warps, mask)


_SPECIAL = {
    "shl": _shift, "shr": _shift, "mad": _multiply_add, "fma": _multiply_add,
    "setp": _set_predicate, "selp": _select, "mov": _move, "cvt": _convert,
    "cvta": _convert_address, "bfe": _bit_field, "ld": _load, "ldu": _load, "st": _store,
    "atom": _atomic, "red": _atomic, "cp": _copy, "mma": _mma, "ldmatrix": _load_matrix,
    "prefetch": _prefetch, "shfl": _shuffle, "vote": _vote,
}  # fmt: skip
