"""Splits and few-shot shares: whole patients, all classes, the same whatever the order."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastht.data import Case, CaseSet, DataError, few_shot, load_cases, split_cases
from fastht.data.cases import SPLITS
from fastht.data.splits import sample_sides

PATIENTS = st.sampled_from([None, "a", "b", "c", "d", "e"])
LABELS = st.sampled_from([None, "x", "y", "z"])
DESCRIBED = st.lists(st.tuples(PATIENTS, LABELS), min_size=1, max_size=60)


def made(described: list[tuple[str | None, str | None]]) -> CaseSet:
    cases = (
        Case(f"n{i}", f"{i}.png", patient=patient, label=label)
        for i, (patient, label) in enumerate(described)
    )
    return CaseSet(tuple(cases), "here", "table")


def groups(cases: CaseSet) -> dict[str, set[str | None]]:
    """The sides of each patient, or image of none."""
    sides = defaultdict(set)
    for case in cases:
        sides[case.patient or case.image].add(case.split)
    return sides


def counts(cases: CaseSet) -> list[int]:
    return [len(cases.side(split)) for split in SPLITS]


@given(DESCRIBED, st.integers(0, 9))
def test_every_case_gets_a_side_and_every_patient_one(
    described: list[tuple[str | None, str | None]], seed: int
) -> None:
    everything = made(described)
    if len(groups(everything)) < 3:
        with pytest.raises(DataError, match=r"here: [12] patients or images for 3 sides"):
            split_cases(everything, seed=seed)
        return
    done = split_cases(everything, seed=seed)
    assert [replace(case, split=None) for case in done] == list(everything)
    assert all(len(sides) == 1 and None not in sides for sides in groups(done).values())
    assert min(counts(done)) > 0


@given(DESCRIBED, st.integers(0, 9), st.randoms(use_true_random=False))
def test_order_does_not_matter(
    described: list[tuple[str | None, str | None]], seed: int, generator: random.Random
) -> None:
    everything = made(described)
    if len(groups(everything)) < 3:
        return
    shuffled = list(everything)
    generator.shuffle(shuffled)
    other = split_cases(replace(everything, cases=tuple(shuffled)), seed=seed)
    assert set(other) == set(split_cases(everything, seed=seed))
    few = set(few_shot(everything.cases, 30, seed=seed))
    assert few == set(few_shot(shuffled, 30, seed=seed))


def test_fixed_for_ever() -> None:
    """These must hold on every platform and Python, or a resumed run mixes the sides."""
    done = split_cases(made([(None, "x")] * 12), seed=7)
    assert [case.name for case in done.side("test")] == FIXED_TEST
    assert [case.name for case in few_shot(made([(None, "x")] * 12).cases, 25, seed=7)] == FIXED_FEW
    assert split_cases(made([(None, "x")] * 12), seed=8) != done


FIXED_TEST = ["n6", "n8"]
FIXED_FEW = ["n2", "n5", "n10"]


def test_fractions_are_met_on_average() -> None:
    done = split_cases(made([(None, "xy"[i % 2]) for i in range(4000)]))
    for label in "xy":
        found = Counter(case.split for case in done if case.label == label)
        for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
            # Three standard deviations of as many draws.
            assert abs(found[split] - share * 2000) <= 3 * (2000 * share * (1 - share)) ** 0.5
    patients = split_cases(made([(f"p{i // 3}", None) for i in range(3000)]))
    for found_now, expected in zip(counts(patients), (2100, 300, 600), strict=True):
        assert abs(found_now - expected) <= 135


def test_rare_classes_train() -> None:
    rare = [(None, f"rare {i}") for i in range(5)]
    for seed in range(20):
        done = split_cases(made([(None, "x")] * 50 + rare), seed=seed)
        assert [case.split for case in done.cases[-5:]] == ["train"] * 5


def test_a_patient_is_no_image_of_that_name() -> None:
    cases = [Case("a", "p", split=None), Case("b", "b.png", patient="p"), Case("c", "c.png")]
    done = split_cases(CaseSet(tuple(cases), "here", "table"))
    assert counts(done) == [1, 1, 1]


@given(DESCRIBED, DESCRIBED, st.integers(0, 9))
def test_who_is_added_moves_nobody(
    described: list[tuple[str | None, str | None]],
    added: list[tuple[str | None, str | None]],
    seed: int,
) -> None:
    """A base of many cases, of every class, so that no side and no class is without its own."""
    base = [(f"p{i}", f"{'xyz'[i % 3]}") for i in range(60)] + described
    before = split_cases(made(base), seed=seed)
    after = split_cases(made(base + added), seed=seed)
    assert after.cases[: len(base)] == before.cases
    fewer = split_cases(made(base), seed=seed)
    assert fewer == before


def test_place_of_the_files_and_frames_that_join_move_nobody() -> None:
    def clips(root: str, frames: int) -> CaseSet:
        cases = (
            Case(f"c{i}-{frame:02d}", f"{root}/c{i}.dcm::{frame}", label="x")
            for i in range(80)
            for frame in range(frames)
        )
        return CaseSet(tuple(cases), root, "table")

    sides = [
        {case.name: case.split for case in split_cases(clips(root, frames))}
        for root, frames in (("/a", 2), ("/elsewhere/b", 2), ("/a", 12))
    ]
    assert sides[0] == sides[1]
    assert sides[2].items() >= sides[0].items()


def test_another_share_of_one_side_moves_none_between_the_others() -> None:
    cases = made([(None, "x")] * 300)
    few, many = (split_cases(cases, (0.9 - test, 0.1, test)) for test in (0.1, 0.4))
    assert few.side("val") == many.side("val")
    moved = [(a.split, b.split) for a, b in zip(few, many, strict=True) if a != b]
    assert set(moved) == {("train", "test")}


def test_sides_of_a_run_that_goes_on_stay() -> None:
    cases = made([(f"p{i // 2}", "x") for i in range(40)])
    kept = {f"n{i}": ("val", "test", "train", "train")[i // 2 % 4] for i in range(40)}
    done = split_cases(cases, kept=kept)  # type: ignore[arg-type]
    assert [case.split for case in done] == [kept[case.name] for case in done]
    kept["n0"] = "train"  # whose patient is on the other side too: no such run is kept
    assert len({case.split for case in split_cases(cases, kept=kept).cases[:2]}) == 1  # type: ignore[arg-type]


def with_splits(*sizes: int) -> CaseSet:
    cases = [
        Case(f"{split}{i}", f"{split}{i}.png", patient=f"{split}{i // 2}", split=split)
        for split, size in zip(SPLITS, sizes, strict=True)
        for i in range(size)
    ]
    return CaseSet(tuple(cases), "here", "table")


def test_given_splits_stay() -> None:
    assert split_cases(with_splits(5, 3, 2)) == with_splits(5, 3, 2)


@pytest.mark.parametrize(
    ("given_sizes", "sizes"),
    [
        ((800, 0, 200), [700, 100, 200]),
        ((900, 100, 0), [700, 100, 200]),
        ((1000, 0, 0), [700, 100, 200]),
    ],
)
def test_sides_that_lack_come_out_of_training(given_sizes: tuple, sizes: list[int]) -> None:
    before = with_splits(*given_sizes)
    done = split_cases(before)
    for found, expected in zip(counts(done), sizes, strict=True):
        assert abs(found - expected) <= 60  # of 500 patients
    assert all(len(sides) == 1 for sides in groups(done).values())
    for old, new in zip(before, done, strict=True):
        assert new.split == old.split or old.split == "train"


def test_a_side_may_be_left_empty() -> None:
    assert counts(split_cases(made([(None, None)] * 10), (0.8, 0.2, 0)))[2] == 0
    assert counts(split_cases(made([(None, None)] * 10), (1, 0, 0))) == [10, 0, 0]
    assert split_cases(with_splits(6, 0, 2), (0.8, 0, 0.2)) == with_splits(6, 0, 2)


def test_frames_of_a_clip_stay_together() -> None:
    cases = tuple(Case(f"c{i}", f"clip{i // 5}.dcm::{i % 5}") for i in range(50))
    done = split_cases(CaseSet(cases, "here", "table"))
    sides = defaultdict(set)
    for case in done:
        sides[case.image.partition("::")[0]].add(case.split)
    assert all(len(splits) == 1 for splits in sides.values())


def test_split_refuses_what_it_cannot_do() -> None:
    everything = made([(None, None)] * 9)
    for bad in ((0.5, 0.5, 0.5), (0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)):
        with pytest.raises(DataError, match=r"fractions .* choose shares of 1"):
            split_cases(everything, bad)
    mixed = replace(everything, cases=(replace(everything.cases[0], split="val"), *everything))
    with pytest.raises(DataError, match="9 of 10 cases have no split; give one to all or to none"):
        split_cases(mixed)
    with pytest.raises(DataError, match="no case trains"):
        split_cases(with_splits(0, 3, 2))


def test_the_sides_of_the_sample_are_those_of_its_documented_numbers() -> None:
    cases = load_cases("sample")
    done = split_cases(cases, kept=sample_sides(cases))
    assert counts(done) == [224, 32, 64]
    assert counts(split_cases(cases)) != [224, 32, 64]
    assert sample_sides(cases, seed=1) == sample_sides(cases, (0.8, 0.1, 0.1)) == {}
    assert all(len(sides) == 1 for sides in groups(done).values())
    for split in SPLITS:
        assert {case.label for case in done.side(split)} == set(done.classes)


def test_sample_by_patient() -> None:
    done = split_cases(load_cases("sample"))
    assert counts(done) == [232, 18, 70]
    assert all(len(sides) == 1 for sides in groups(done).values())
    for split in SPLITS:
        assert {case.label for case in done.side(split)} == set(done.classes)


# Few shots


@given(DESCRIBED, st.integers(0, 9), st.floats(0.1, 100), st.floats(0.1, 100))
def test_few_shots_are_nested_and_of_every_class(
    described: list[tuple[str | None, str | None]], seed: int, one: float, other: float
) -> None:
    cases = made(described).cases
    low, high = sorted((one, other))
    small, large = few_shot(cases, low, seed=seed), few_shot(cases, high, seed=seed)
    assert set(small) <= set(large) <= set(cases)
    assert {case.label for case in small} == {case.label for case in cases}
    assert list(small) == sorted(small, key=cases.index)  # in the original order
    assert few_shot(cases, 100, seed=seed) == cases


@pytest.mark.parametrize("percent", [1, 2, 5, 10, 20, 50, 0.29])
def test_few_shots_are_the_percentage_of_each_class(percent: float) -> None:
    cases = made([(None, "x")] * 10_000 + [(None, "y")] * 500 + [(None, "z")] * 3).cases
    found = Counter(case.label for case in few_shot(cases, percent))
    assert found["x"] == round(percent * 100)
    assert found["y"] == max(1, int(percent * 5))
    assert found["z"] == 1  # also at 50 %: rounded down


def test_few_shots_depend_on_the_seed() -> None:
    cases = made([(None, None)] * 100).cases
    assert few_shot(cases, 10, seed=0) != few_shot(cases, 10, seed=1)


def test_few_shot_refuses_what_it_cannot_do() -> None:
    cases = made([(None, None)] * 5).cases
    for percent in (0, -1, 101, float("nan")):
        with pytest.raises(DataError, match=r"percentage is .*; choose one above 0"):
            few_shot(cases, percent)
    with pytest.raises(DataError, match="no training cases"):
        few_shot([], 5)
