"""Registers, immediates, addresses: what stands behind an instruction's opcode."""

import re

import numpy as np

from .arithmetic import DTYPES

_STORAGE = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIZES = {kind: np.dtype(dtype).itemsize for kind, dtype in DTYPES.items()}
_GARBAGE = 0xA5A5_A5A5_A5A5_A5A5  # what a register holds before it is written
PARAM_START = 0x2000_0000


class Operands:
    """The registers of a block's threads, each an array of unsigned integers of its width."""

    def __init__(self, block, index, blocks, threads):
        self.block = block
        self.threads = threads
        self._values, self._defined = {}, {}
        self._constants, self._addresses = {}, {}  # by their text, and type
        every = np.arange(threads, dtype=np.uint32)
        self._special = {
            "%tid.x": every, "%laneid": every % 32, "%ntid.x": np.uint32(threads),
            "%ctaid.x": np.uint32(index), "%nctaid.x": np.uint32(blocks), "WARP_SZ": np.uint32(32),
        }  # fmt: skip
        self._special |= {
            f"%{name}.{axis}": np.uint32(0) for name in ("tid", "ctaid") for axis in "yz"
        }
        self._special |= {
            f"%{name}.{axis}": np.uint32(1) for name in ("ntid", "nctaid") for axis in "yz"
        }

    def predicate(self, instruction, mask):
        value = self.read(instruction.predicate, "pred", mask, instruction.text)
        return ~value if instruction.negated else value

    def storage(self, register):
        if register not in self._values:
            dtype = _STORAGE[self.block.program.bits(register)]
            garbage = dtype(_GARBAGE & np.iinfo(dtype).max) if dtype is not np.bool_ else True
            self._values[register] = np.full(self.threads, garbage, dtype)
            self._defined[register] = np.zeros(self.threads, bool)
        return self._values[register]

    def is_defined(self, register):
        """Return for which threads a register has been written, or True for all of them."""
        if not register.startswith("%") or register in self._special:
            return True
        self.storage(register)
        return self._defined[register]

    def read(self, name, kind, mask, text, quiet=False):
        """Return a register's or constant's value as an array (or scalar) of a PTX type."""
        dtype = DTYPES[kind]
        value = self._values.get(name)
        if value is None:
            if name in self._special or not name.startswith("%"):
                return self.constant(name, dtype)
            value = self.storage(name)
        defined = self._defined[name]
        if defined is not True and not quiet and (mask & ~defined).any():
            self.block.result.undefined.add(f"{name} in {text}")
        if dtype is np.bool_ or value.dtype.itemsize == _SIZES[kind]:
            return value.view(dtype)
        # A register may be wider than the type.
        return value.astype(_STORAGE[8 * _SIZES[kind]]).view(dtype)

    def constant(self, text, dtype):
        """Return what never changes: a number, an address of the text, or who a thread is."""
        key = text, dtype
        if key not in self._constants:
            self._constants[key] = (
                np.asarray(self._special[text]).astype(dtype)
                if text in self._special
                else self._number(text, dtype)
            )
        return self._constants[key]

    def _number(self, text, dtype):
        program = self.block.program
        if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
            if match[1] in "fF":
                return np.uint32(int(match[2], 16)).view(np.float32).astype(dtype)
            return np.uint64(int(match[2], 16)).view(np.float64).astype(dtype)
        if text in program.shared:
            from .machine import SHARED_START

            return dtype(SHARED_START + program.shared[text])
        if text in program.parameters:
            return dtype(PARAM_START + program.parameters[text])
        number = int(text.rstrip("U"), 0)
        if dtype is np.bool_ or np.dtype(dtype).kind == "f":
            return dtype(number)
        bits = np.dtype(dtype).itemsize * 8
        return np.array(number & (1 << bits) - 1, f"u{bits // 8}").view(dtype)[()]

    def write(self, name, value, mask, defined=True):
        """Set a register of the threads of a mask; ``defined``: for whom the value is."""
        if name == "_":
            return
        storage = self.storage(name)
        value = np.asarray(value)
        if value.dtype.kind == "f":
            value = value.view(f"u{value.dtype.itemsize}")
        elif value.dtype != storage.dtype:
            value = value.astype(storage.dtype)  # a signed number into a wider register: its sign
        np.copyto(storage, value.view(storage.dtype), where=mask)
        known = self._defined[name]
        if defined is True:
            if known is True:
                return
            self._defined[name] = True if mask.all() else known | mask
        else:
            known = np.ones(self.threads, bool) if known is True else known
            self._defined[name] = np.where(mask, defined, known)

    def address(self, operand, mask, text):
        """Return ``[register or name + offset]`` as a name, and an array or scalar of int64."""
        if operand not in self._addresses:
            base, _, offset = operand.strip("[] ").partition("+")
            self._addresses[operand] = base.strip(), int(offset or "0", 0)
        base, offset = self._addresses[operand]
        if base.startswith("%"):
            kind = f"u{self.block.program.bits(base)}"
            value = self.read(base, kind, mask, text).astype(np.int64)
        else:
            value = self.constant(base, np.int64)
        return value + offset


def members(operand):
    """Return the registers of ``{a,b,c}``, or the operand alone."""
    if operand.startswith("{"):
        return [name.strip() for name in operand.strip("{} ").split(",")]
    return [operand]
