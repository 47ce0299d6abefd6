"""Global memory: arrays at addresses, with nothing between them."""

import numpy as np

SHARED = 0x0100_0000_0000  # where generic addresses of shared memory begin
PREFETCHED = 64  # bytes that a prefetch brings to the L2 cache
_FIRST = 0x5000_0000_0000
_GAP = 1 << 20


class Memory:
    """Copies of arrays; each byte beside them is out of bounds."""

    def __init__(self):
        self.data = np.zeros(0, np.uint8)
        self._placed = []  # (address, offset in data, bytes, dtype, shape), by address
        self._table = None  # the first three as an array
        self._next = _FIRST
        self.seen = set()  # addresses of arrays with an access since a reader emptied it
        # Asynchronous copies of nothing, or from where a prefetch went, since a reader emptied it.
        self.near = 0
        self._prefetched = np.zeros(0, np.int64)  # lines of PREFETCHED bytes
        self.moved = None  # of each byte, whether it was read or written since `meter`

    def place(self, array, address=None):
        """Copy an array into memory and return its address, a multiple of 256 if none is given."""
        raw = np.ascontiguousarray(array)
        if address is None:
            address = self._next
            self._next += -(-raw.nbytes // 256) * 256 + _GAP
        self._placed.append((address, self.data.size, raw.nbytes, raw.dtype, raw.shape))
        self._placed.sort(key=lambda placed: placed[0])
        for one, other in zip(self._placed, self._placed[1:], strict=False):
            if one[0] + one[2] > other[0]:
                raise ValueError(f"arrays overlap at {other[0]:#x}")
        self.data = np.concatenate([self.data, raw.reshape(-1).view(np.uint8)])
        self._table = None
        return address

    def reserve(self, sizes):
        """Place zeros at addresses, bytes by address; memory is taken as it is touched."""
        total = 0
        for address, size in sorted(sizes.items()):
            self._placed.append((address, total, size, np.dtype(np.uint8), (size,)))
            total += size
        self.data = np.zeros(total, np.uint8)
        self._table = None

    def prefetch(self, addresses):
        """Note that the lines around addresses, all of them in bounds, are brought near."""
        self.offsets(addresses, 1)
        lines = addresses.astype(np.int64) // PREFETCHED
        self._prefetched = np.union1d(self._prefetched, lines)

    def count_near(self, addresses):
        """Count the accesses to lines that have been brought near."""
        if self._prefetched.size:
            lines = addresses.astype(np.int64) // PREFETCHED
            self.near += int(np.isin(lines, self._prefetched).sum())

    def meter(self):
        """Begin to mark the bytes that are read and written."""
        self.moved = np.zeros(self.data.size, bool)

    def distinct(self, address):
        """Return how many bytes of the array at an address were read or written."""
        (found,) = [p for p in self._placed if p[0] == address]
        return int(self.moved[found[1] : found[1] + found[2]].sum())

    def read(self, address):
        """Return the array that was placed at an address, as it is now."""
        for placed, start, size, dtype, shape in self._placed:
            if placed == address:
                return self.data[start : start + size].copy().view(dtype).reshape(shape)
        raise KeyError(f"nothing was placed at {address:#x}")

    def offsets(self, addresses, size):
        """Return where in ``data`` accesses of ``size`` bytes begin, all of them in bounds."""
        addresses = addresses.astype(np.int64)
        if self._table is None:
            self._table = np.array([placed[:3] for placed in self._placed], np.int64).T.copy()
        starts, bases, sizes = self._table
        which = np.searchsorted(starts, addresses, "right") - 1
        inside = addresses - starts[which]
        wrong = (which < 0) | (inside + size > sizes[which])
        if wrong.any():
            nearest = int(which[wrong][0])
            array = self._placed[max(nearest, 0)]
            raise IndexError(
                f"out of bounds: {size} bytes at {addresses[wrong][0] - array[0]} of an array of "
                f"{array[2]} bytes ({array[3]}, {array[4]})"
            )
        if (addresses % size).any():
            raise IndexError(f"misaligned access of {size} bytes")
        few = which[:1] if (which == which[0]).all() else np.unique(which)
        self.seen.update(int(starts[number]) for number in few)
        found = bases[which] + inside
        if self.moved is not None:
            self.moved[found[:, None] + np.arange(size)] = True
        return found


def gather(data, offsets, size):
    """Return ``size`` bytes at each offset, as rows."""
    return data[offsets[:, None] + np.arange(size)]


def scatter(data, offsets, rows):
    """Write a row of bytes at each offset; of two for the same byte the higher thread's stays."""
    data[offsets[:, None] + np.arange(rows.shape[1])] = rows
