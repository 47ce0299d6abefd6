"""Taking turns: the order, what is on the clock, when it ends; inputs that outgrow the cache."""

import gc
import time

import pytest
import torch

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
