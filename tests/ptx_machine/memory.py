"""Global memory with gaps that nobody may touch, and access by every thread at an address."""

import numpy as np

GLOBAL = 0x7F00_0000_0000
SHARED = 0x0100_0000_0000  # where generic addresses of shared memory begin
_GAP = 4096


class Memory:
    """Arrays at addresses; each byte beside them is out of bounds."""

    def __init__(self):
        self.data = np.zeros(_GAP, np.uint8)
        self.valid = np.zeros(_GAP, bool)
        self._placed = []

    def place(self, array):
        """Copy an array into memory and return its address, a multiple of 256."""
        raw = np.ascontiguousarray(array)
        start = self.data.size
        total = -(-raw.nbytes // 256) * 256 + _GAP
        self.data = np.concatenate([self.data, np.zeros(total, np.uint8)])
        self.valid = np.concatenate([self.valid, np.zeros(total, bool)])
        self.data[start : start + raw.nbytes] = raw.reshape(-1).view(np.uint8)
        self.valid[start : start + raw.nbytes] = True
        self._placed.append((start, raw.dtype, raw.shape, raw.nbytes))
        return GLOBAL + start

    def read(self, address):
        """Return the array that was placed at an address, as it is now."""
        for start, dtype, shape, size in self._placed:
            if GLOBAL + start == address:
                return self.data[start : start + size].copy().view(dtype).reshape(shape)
        raise KeyError(f"nothing was placed at {address:#x}")

    def offsets(self, addresses, size, what):
        """Return where in ``data`` accesses of ``size`` bytes begin, all of them in bounds."""
        offsets = addresses.astype(np.int64) - GLOBAL
        inside = (offsets >= 0) & (offsets + size <= self.data.size)
        if not inside.all() or not (self.valid[offsets] & self.valid[offsets + size - 1]).all():
            wrong = int(addresses[~inside][0]) if not inside.all() else None
            if wrong is None:
                bad = ~(self.valid[offsets] & self.valid[offsets + size - 1])
                wrong = int(addresses[bad][0])
            raise IndexError(f"out of bounds at {wrong:#x}: {what}")
        if (offsets % size).any():
            raise IndexError(f"misaligned access: {what}")
        return offsets


def gather(data, offsets, size):
    """Return ``size`` bytes at each offset, as rows."""
    return data[offsets[:, None] + np.arange(size)]


def scatter(data, offsets, rows):
    """Write a row of bytes at each offset; of two for the same byte the higher thread's stays."""
    data[offsets[:, None] + np.arange(rows.shape[1])] = rows
