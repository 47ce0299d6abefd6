"""Integers of the 32 lanes of a block's warps, exact or up to a number that all lanes share.

A kernel's parameters, the block's index and a loop's counter are not known, but the same in all
lanes of a warp. Such a number is carried as one that is only known to be a multiple of a power of
two; sums, differences, shifts and masks keep the lanes' parts apart from it where they can. It is
taken that an address does not run over 2**32 from one lane to another.

A value is :class:`Lanes`, or ``None`` where nothing is known. Predicates are zeros and ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]  # (1 or warps, 1 or 32)
BITS = 32


@dataclass(frozen=True, eq=False)
class Lanes:
    """What lanes have, beside an unknown multiple of ``2**known`` that a warp's lanes share."""

    words: Words
    known: int = BITS

    @property
    def exact(self) -> bool:
        """Whether nothing is unknown."""
        return self.known == BITS

    @property
    def uniform(self) -> bool:
        """Whether a warp's lanes have the same number."""
        return self.words.shape[1] == 1

    def number(self) -> int | None:
        """Return the number that all lanes of all warps have, if it is known."""
        return int(self.words[0, 0]) if self.exact and self.words.size == 1 else None


def constant(number: int) -> Lanes:
    """Return one number in all lanes."""
    return Lanes(np.array([[number & 0xFFFFFFFF]], dtype=np.uint32))


ZERO, ONE = constant(0), constant(1)
SHARED = Lanes(ZERO.words, 0)  # any number, the same in all lanes of a warp


def of(words: Words, known: int = BITS) -> Lanes:
    """Return words as lanes, in as few as they need."""
    if words.shape[1] > 1 and (words == words[:, :1]).all():
        words = words[:, :1]
    if words.shape[0] > 1 and (words == words[:1]).all():
        words = words[:1]
    return Lanes(words, max(0, min(BITS, known)))


def alike(a: Lanes, b: Lanes) -> bool:
    """Whether as much is known of two values."""
    return a is b or (a.known == b.known and np.array_equal(a.words, b.words))


def zeros_below(words: Words) -> int:
    """Return how many of the lowest bits are zero in all words."""
    found = int(np.bitwise_or.reduce(words, axis=None))
    return (found & -found).bit_length() - 1 if found else BITS


def anything(*operands: Lanes | None) -> Lanes | None:
    """Return what any function of the operands is: the same in all lanes if they are."""
    return SHARED if all(o is not None and o.uniform for o in operands) else None


def add(*terms: Lanes | None) -> Lanes | None:
    """Return a sum."""
    if any(term is None for term in terms):
        return None
    words = terms[0].words  # type: ignore[union-attr]
    for term in terms[1:]:
        words = words + term.words  # type: ignore[union-attr]
    return of(words, min(term.known for term in terms))  # type: ignore[union-attr]


def negative(value: Lanes | None) -> Lanes | None:
    """Return a number's negative."""
    return None if value is None else Lanes(-value.words, value.known)


def inverted(value: Lanes | None) -> Lanes | None:
    """Return a number with each bit turned over, which is its negative less one."""
    return None if value is None else Lanes(~value.words, value.known)


def multiply(a: Lanes | None, b: Lanes | None) -> Lanes | None:
    """Return a product, without its upper half."""
    if a is None or b is None:
        return None
    if a.exact and b.exact:
        return of(a.words * b.words)
    if not b.exact:
        a, b = b, a
    if b.exact and b.uniform:
        return of(a.words * b.words, a.known + zeros_below(b.words))
    if a.uniform and b.uniform:
        lowest = [min(v.known, zeros_below(v.words)) for v in (a, b)]
        return Lanes(ZERO.words, min(BITS, sum(lowest)))
    return None


def shift_left(value: Lanes | None, by: Lanes | None) -> Lanes | None:
    """Return a number shifted to the left."""
    if value is None or by is None or not by.exact:
        return anything(value, by)
    power = np.where(by.words < BITS, np.uint32(1) << (by.words & 31), 0)
    return multiply(value, of(power.astype(np.uint32)))


def shift_right(value: Lanes | None, by: Lanes | None, signed: bool = False) -> Lanes | None:
    """Return a number shifted to the right."""
    count = None if by is None else by.number()
    if value is None or by is None or not by.exact or (count is None and not value.exact):
        return anything(value, by)
    places = np.minimum(by.words, 31)
    arithmetic = (value.words.view(np.int32) >> places.view(np.int32)).view(np.uint32)
    if not value.exact:
        assert count is not None
        return of(arithmetic, value.known - count) if count <= value.known else anything(value)
    if signed:
        return of(arithmetic)
    return of(np.where(by.words < BITS, value.words >> places, 0).astype(np.uint32))


def logic(table: int, *operands: Lanes | None) -> Lanes | None:
    """Return bitwise logic of three operands by LOP3's table of truth.

    Below the lowest bit that is not known it is exact. Above, an operand may come through as it is,
    be masked away, or give bits that all lanes share.
    """
    known = [o for o in operands if o is not None]
    if len(known) < len(operands):
        return None
    split = min(o.known for o in known)
    words = [o.words for o in known]
    here = _truth(table, words)
    if split == BITS:
        return of(here)
    low, high = np.uint32((1 << split) - 1), np.uint32(~((1 << split) - 1) & 0xFFFFFFFF)
    loose = [n for n, o in enumerate(known) if not o.exact]
    if len(loose) == 1:
        n = loose[0]
        without, whole = (
            _truth(table, [*words[:n], np.full_like(words[n], bits), *words[n + 1 :]]) & high
            for bits in (0, 0xFFFFFFFF)
        )
        if (without == whole).all():
            return of(here & low | without)
        if (without == 0).all() and (whole == high).all():
            return of(here & low | words[n] & high, known[n].known)
        felt = of(without ^ whole)
        if felt.uniform and of(words[n] & felt.words).uniform and of(without & felt.words).uniform:
            return of(here & low | without & ~felt.words, zeros_below(felt.words))
    if all(of(w & high).uniform for w in words):
        return of(here & low, split)
    return None


def _truth(table: int, words: Sequence[Words]) -> Words:
    a, b, c = words
    found = np.zeros((1, 1), dtype=np.uint32)
    for case in range(8):
        if table >> case & 1:
            found = found | (
                (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
            )
    return found


def permuted(a: Lanes | None, selector: Lanes | None, b: Lanes | None) -> Lanes | None:
    """Return four bytes chosen out of two words, as PRMT does it."""
    chosen = None if selector is None else selector.number()
    if a is None or b is None or chosen is None or not (a.exact and b.exact):
        return anything(a, selector, b)
    both = b.words.astype(np.uint64) << np.uint64(32) | a.words.astype(np.uint64)
    found = np.zeros_like(both)
    for place in range(4):
        nibble = chosen >> 4 * place & 15
        byte = both >> np.uint64(8 * (nibble & 7)) & np.uint64(255)
        if nibble & 8:  # its sign, eight times
            byte = (byte >> np.uint64(7)) * np.uint64(255)
        found = found | byte << np.uint64(8 * place)
    return of(found.astype(np.uint32))


def extended(value: Lanes | None, bits: Lanes | None, signed: bool) -> Lanes | None:
    """Return a number of so many bits, the others its sign or zero, as SGXT does it."""
    count = None if bits is None else bits.number()
    if count is None or value is None or count >= BITS:
        return value if count is not None and count >= BITS else anything(value, bits)
    low = logic(0xC0, value, constant((1 << count) - 1), ZERO)
    if not signed or low is None:
        return low
    if not low.exact:
        return anything(low)
    rest = constant(BITS - count)
    return shift_right(shift_left(low, rest), rest, signed=True)


def compared(name: str, a: Lanes | None, b: Lanes | None, signed: bool) -> Lanes | None:
    """Return the truth of a comparison by its name in machine code."""
    if a is None or b is None or not (a.exact and b.exact):
        return anything(a, b)
    left, right = (v.words.view(np.int32) if signed else v.words for v in (a, b))
    truth = {
        "EQ": left == right, "NE": left != right, "LT": left < right, "LE": left <= right,
        "GT": left > right, "GE": left >= right,
    }  # fmt: skip
    return of(truth[name].astype(np.uint32)) if name in truth else None


def chosen(truth: Lanes | None, a: Lanes | None, b: Lanes | None) -> Lanes | None:
    """Return ``a`` where a predicate is true, else ``b``."""
    if truth is not None and truth.exact:
        if truth.number() is not None:
            return a if truth.number() else b
        if a is None or b is None:
            return None
        if (a.exact and b.exact) or (truth.uniform and a.known == b.known):
            return of(np.where(truth.words != 0, a.words, b.words), a.known)
        return None
    return joined(a, b, together=truth is not None)


def joined(a: Lanes | None, b: Lanes | None, together: bool) -> Lanes | None:
    """Return what is one of two; all of a warp's lanes have the same of them if ``together``."""
    if a is b or a is None or b is None:
        return a if a is b else None
    apart = of(a.words - b.words)
    if apart.number() == 0 and a.known == b.known:
        # Two numbers that are not known may differ, lane by lane.
        return a if together or a.exact else None
    if not together or not apart.uniform:
        return None
    known = min(a.known, b.known, zeros_below(apart.words))
    return a if known == a.known else b if known == b.known else Lanes(a.words, known)
