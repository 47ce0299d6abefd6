"""Taking turns: the order, what is on the clock, when it ends; inputs that outgrow the cache."""

import gc
import time

import pytest
import torch

from fastht.bench import meter
from fastht.bench.meter import Contestant, Limits, Rotation, alternate


def recorded(names, **limits):
    """Return the order in which contestants ran, and their seconds."""
    order = []
    contestants = {name: Contestant(lambda _, name=name: order.append(name)) for name in names}
    return order, alternate(contestants, limits=Limits(min_seconds=0.0, **limits))


def test_each_round_begins_one_further_and_a_whole_turn_reverses_the_order():
    order, _ = recorded("abc", warm_up=1, min_rounds=7)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert rounds == ["abc", "abc", "bca", "cab", "cba", "acb", "bac", "abc"]


def test_every_contestant_runs_once_a_round():
    order, seconds = recorded("abcd", warm_up=2, min_rounds=5)
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys("abcd", 5)
    for i in range(0, len(order), 4):
        assert sorted(order[i : i + 4]) == list("abcd")
    assert len(order) == 4 * (2 + 5)


def test_preparation_is_off_the_clock_and_hands_its_result_over():
    given = []

    def prepare():
        time.sleep(0.02)
        return "prepared"

    limits = Limits(warm_up=0, min_rounds=3, min_seconds=0.0)
    seconds = alternate({"a": Contestant(given.append, prepare)}, limits=limits)
    assert given == ["prepared"] * 3
    assert max(seconds["a"]) < 0.01


def test_the_run_is_on_the_clock():
    limits = Limits(warm_up=0, min_rounds=2, min_seconds=0.0)
    seconds = alternate({"a": Contestant(lambda _: time.sleep(0.02))}, limits=limits)
    assert min(seconds["a"]) >= 0.02


def test_it_goes_on_for_the_least_time_and_ends_at_the_most():
    sleeper = {"a": Contestant(lambda _: time.sleep(0.01))}
    least = Limits(warm_up=0, min_rounds=1, min_seconds=0.1)
    assert sum(alternate(sleeper, limits=least)["a"]) >= 0.08
    most = Limits(warm_up=0, min_rounds=1000, min_seconds=0.0, max_seconds=0.1)
    assert 1 <= len(alternate(sleeper, limits=most)["a"]) <= 11


def test_nobody_to_time_is_refused():
    with pytest.raises(ValueError, match="nothing to time: name at least one contestant"):
        alternate({})


def test_garbage_is_collected_again_after_an_error():
    def fail(_):
        assert not gc.isenabled()
        raise RuntimeError("on the clock")

    with pytest.raises(RuntimeError, match="on the clock"):
        alternate({"a": Contestant(fail)}, limits=Limits(warm_up=0))
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("set_bytes", "cache_bytes", "count"), [(100, 0, 1), (100, 100, 2), (100, 101, 3), (7, 100, 16)]
)
def test_a_rotation_outgrows_the_cache(set_bytes, cache_bytes, count):
    rotation = Rotation(lambda: torch.zeros(1), set_bytes, cache_bytes)
    assert len(rotation.sets) == count
    assert (count - 1) * set_bytes >= cache_bytes  # between two turns of a set


def test_a_rotation_takes_every_set_in_turn():
    rotation = Rotation(object, 1, 3)
    first = [rotation.next() for _ in range(4)]
    assert {id(one) for one in first} == {id(one) for one in rotation.sets}
    assert [rotation.next() for _ in range(4)] == first


class FakeGpu:
    """A device that runs what is queued, beside a host whose time passes by hand."""

    def __init__(self):
        self.host = self.device = 0.0  # seconds
        self.spins = []

    def work(self, seconds):
        """Queue a kernel: it starts when it has been launched and the one before it has ended."""
        self.device = max(self.device, self.host) + seconds

    def synchronize(self):
        self.host = max(self.device, self.host)

    def sleep(self, cycles):
        self.spins.append(cycles / meter.CYCLES_PER_SECOND)
        self.work(self.spins[-1])

    def event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.gpu.work(0.0)
        self.at = self.gpu.device

    def elapsed_time(self, later):
        return 1e3 * (later.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu()
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", fake.sleep)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: fake.host)
    return fake


def launches(gpu, count, host, kernel):
    """Return a contestant of ``count`` kernels, each of which the host takes a while to launch."""

    def run(_):
        for _ in range(count):
            gpu.host += host
            gpu.work(kernel)

    return Contestant(run)


def test_on_a_gpu_the_time_of_the_host_is_off_the_clock(gpu):
    limits = Limits(warm_up=1, min_rounds=3, min_seconds=0.0)
    contestants = {
        "slow host": launches(gpu, 11, host=50e-6, kernel=20e-6),
        "slow kernels": launches(gpu, 11, host=5e-6, kernel=40e-6),
    }
    seconds = alternate(contestants, device="cuda", limits=limits)
    assert seconds["slow host"] == pytest.approx([220e-6] * 3)
    assert seconds["slow kernels"] == pytest.approx([440e-6] * 3)


def test_on_a_gpu_a_call_that_compiles_first_asks_for_no_long_spin(gpu):
    first = [1.0]

    def run(_):
        gpu.host += first.pop() if first else 1e-4

    limits = Limits(warm_up=2, min_rounds=2, min_seconds=0.0)
    alternate({"a": Contestant(run)}, device="cuda", limits=limits)
    assert gpu.spins == pytest.approx([2e-4] * 2, rel=1e-4)


def test_on_a_gpu_no_spin_is_longer_than_the_longest(gpu):
    limits = Limits(warm_up=0, min_rounds=1, min_seconds=0.0)
    alternate({"a": launches(gpu, 1, 1.0, 1e-6)}, device="cuda", limits=limits)
    limits = Limits(warm_up=1, min_rounds=1, min_seconds=0.0)
    alternate({"a": launches(gpu, 1, 1.0, 1e-6)}, device="cuda", limits=limits)
    assert gpu.spins == [meter.LONGEST_SPIN] * 2
