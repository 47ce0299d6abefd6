"""What autograd keeps, counted by hand; the peak of a process, of sizes that are known."""

import gc
import os
import weakref

import pytest
import torch

from fastht.bench import memory
from fastht.saved_bytes import saved_bytes

MIB = 2**20
needs_linux = pytest.mark.skipif(
    not memory.peak_is_measurable("cpu"), reason="needs Linux's /proc/self/clear_refs"
)


def numbers(count):
    return torch.randn(count, requires_grad=True)


def test_a_product_keeps_both_of_its_factors():
    a, b = numbers(100), numbers(100)
    assert saved_bytes(lambda: a * b) == 2 * 400


def test_what_is_alive_anyway_does_not_count():
    a, b = numbers(100), numbers(100)
    assert saved_bytes(lambda: a * b, [a]) == 400
    assert saved_bytes(lambda: a * b, [a[3:], b]) == 0  # a view stands for its storage
    assert saved_bytes(lambda: a.exp() * b, [a, b]) == 400


def test_a_view_counts_whole_and_once():
    base, a, b = torch.randn(1000), numbers(10), numbers(10)
    assert saved_bytes(lambda: a * base[:10], [a]) == 4000
    assert saved_bytes(lambda: (a * base[:10], b * base[10:20]), [a, b]) == 4000


def test_nothing_is_kept_without_gradients():
    a = torch.randn(100)
    assert saved_bytes(lambda: a * a) == 0


def test_freed_intermediates_do_not_count():
    a = numbers(100)
    assert saved_bytes(lambda: (a + 1) + 2, [a]) == 0


class Witness:
    """Something in a graph that can be referred to weakly, unlike the graph's nodes."""


def test_nothing_stays_of_a_graph_that_was_counted():
    a, witnesses = numbers(100), []

    def forward():
        double = 2 * a
        witness = double.grad_fn.metadata["witness"] = Witness()
        witnesses.append(weakref.ref(witness))
        return double.exp()  # keeps its own output

    assert saved_bytes(forward) == 400
    gc.collect()
    assert witnesses[0]() is None


def growth_of(kept_mib, passing_mib):
    kept = []

    def step():
        kept.append(torch.ones(kept_mib * MIB, dtype=torch.uint8))
        torch.ones(passing_mib * MIB, dtype=torch.uint8)

    torch.ones(1000, dtype=torch.uint8)  # the code's own pages come in with the first call
    return memory.peak_growth(step, "cpu")


def growths():
    return [growth_of(0, 64), growth_of(48, 16)]


@needs_linux
def test_the_peak_of_a_fresh_process_is_what_it_allocates():
    assert memory.in_fresh_process(growths) == pytest.approx([64 * MIB] * 2, rel=0.05)


def fail():
    raise ValueError(f"in process {os.getpid()}")


def test_an_error_in_a_fresh_process_is_raised_here():
    with pytest.raises(ValueError, match=r"in process \d+") as told:
        memory.in_fresh_process(fail)
    assert str(told.value) != f"in process {os.getpid()}"


def test_where_the_system_does_not_tell_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing")
    assert not memory.peak_is_measurable("cpu")
    with pytest.raises(RuntimeError, match="clear_refs"):
        memory.peak_growth(lambda: None, "cpu")
