"""Splits by groups: nobody on two sides, stable, linked by any key; the command's table."""

import csv
import random
from pathlib import Path

import pytest
from miniature_sets import lines, picture

from fastht.cli import main
from fastht.data import DataError
from fastht.data.cases import Case, CaseSet
from fastht.data.groups import find_groups, split_groups


def case(i: int, patient: str | None = None, *cases: str, caption: str = "") -> Case:
    groups = (("case_id", cases),) if cases else ()
    return Case(f"{i}", f"{i}.png", patient=patient, caption=caption, groups=groups)


def many(patients: int = 400, images: int = 3) -> list[Case]:
    return [case(images * p + i, f"p{p}") for p in range(patients) for i in range(images)]


def sides(cases: list[Case], **options: object) -> dict[str, str | None]:
    found, _ = split_groups(CaseSet(tuple(cases), "set", "table"), **options)  # type: ignore[arg-type]
    return {case.name: case.split for case in found}


def test_ratios_are_met_and_no_patient_parts() -> None:
    cases = many()
    chosen = sides(cases)
    for side, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert abs(sum(s == side for s in chosen.values()) / len(cases) - share) < 0.06
    by_patient: dict[str | None, set[str | None]] = {}
    for one in cases:
        by_patient.setdefault(one.patient, set()).add(chosen[one.name])
    assert all(len(found) == 1 for found in by_patient.values())
    assert chosen != sides(cases, seed=1)


def test_ratios_are_met_by_linked_groups_too() -> None:
    cases = [case(i, f"p{i // 2}", f"c{i // 3}") for i in range(2400)]
    chosen = sides(cases, by=("patient", "case_id"))
    assert len(find_groups(cases, ("patient", "case_id")).members) == 400
    assert abs(sum(side == "train" for side in chosen.values()) / len(cases) - 0.6) < 0.06


def test_order_and_more_records_move_nobody() -> None:
    cases = many()
    before = sides(cases)
    shuffled = [*cases]
    random.Random(0).shuffle(shuffled)
    assert sides(shuffled) == before
    more = [*cases, *(case(9000 + i, f"new{i}") for i in range(100)), case(9999, "p7")]
    after = sides(more)
    assert {name: after[name] for name in before} == before
    assert after["9999"] == before["21"]
    fewer = sides(cases[300:])
    assert fewer == {name: before[name] for name in fewer}


def test_records_that_share_any_key_are_one_group() -> None:
    cases = [
        case(0, "a", "1"),
        case(1, "a", "2"),
        case(2, None, "2"),
        case(3, "b", "2"),
        case(4, "c"),
        case(5),
    ]
    found = find_groups(cases, ("patient", "case_id"))
    assert found.members == ((0, 1, 2, 3), (4,), (5,))
    # By the last of three keys too.
    more = [*cases, case(6, "d", "9", "8"), case(7, "e", "8")]
    assert find_groups(more, ("patient", "case_id")).members[-1] == (6, 7)
    assert found.names[1:] == (("patient", "c"), ("image", "5.png"))
    assert found.names[0][0] == "patient"
    assert found.linked == 1
    # By the patient alone the case without one stands by itself.
    assert find_groups(cases).members == ((0, 1), (2,), (3,), (4,), (5,))
    # A key of one kind is none of another.
    assert len(find_groups([case(0, "1"), case(1, None, "1")], ("patient", "case_id")).members) == 2


def test_a_link_moves_one_of_two_groups_at_most() -> None:
    cases = [case(2 * p + i, f"p{p}", f"c{p}") for p in range(60) for i in range(2)]
    by = ("patient", "case_id")
    before = sides(cases, by=by)
    after = sides([*cases, case(999, "p3", "c17")], by=by)
    moved = {name for name in before if after[name] != before[name]}
    assert moved in (set(), {"6", "7"}, {"34", "35"})
    assert after["6"] == after["34"] == after["999"]


def test_equal_captions_may_link() -> None:
    cases = [case(i, caption="a  cyst" if i % 2 else f"text {i}") for i in range(6)]
    assert find_groups(cases, ("caption",)).members == ((0,), (1, 3, 5), (2,), (4,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": (0.5, 0.2, 0.2)}, "choose shares of 1"),
        ({"ratios": (0.0, 0.5, 0.5)}, "choose shares of 1"),
        ({"by": ("study",)}, r"no study to split by \(keys of groups: none\)"),
        ({"ratios": (0.998, 0.001, 0.001)}, "falls into val or test; choose another --seed"),
    ],
)
def test_what_cannot_be_split_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sides(many(20), **options)


def test_the_command_writes_a_table_and_tells_what_sides_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = []
    for i in range(60):
        picture(tmp_path / f"{i}.png", seed=i)
        listed.append(f"{i}.png,p{i // 2},c{i // 3},A cyst in the liver number {i % 50}.")
    lines(tmp_path / "t.csv", "filepath,patient,case_id,title", *listed)
    command = ["data", "split", str(tmp_path / "t.csv"), "--group-keys", "case_id", "--seed", "2"]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out), "--task", "pairs", "--no-images"]) == 0
    told = capsys.readouterr().out
    assert "10 groups by patient, case_id, the largest of 6 images; 10 with several values" in told
    assert "groups: 0\n" in told
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for first in range(0, 60, 6):
        assert len({row["split"] for row in rows[first : first + 6]}) == 1
    # The same bytes on two sides are told, and are the exit status.
    apart = next(i for i in range(6, 60, 6) if rows[i]["split"] != rows[0]["split"])
    (tmp_path / f"{apart}.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert main([*command, "--out", str(tmp_path / "again")]) == 1
    assert "images, same bytes: 1" in capsys.readouterr().out
    # A split that is there stays unless it is asked for.
    again = ["data", "split", str(out / "table.csv"), "--out", str(tmp_path / "third")]
    assert main([*again, "--no-images"]) == 1
    assert "not replaced unasked" in capsys.readouterr().err
    assert "mask" not in rows[0]
    assert main(["data", "split", "sample", "--no-images", "--out", str(tmp_path / "fourth")]) == 0
    with open(tmp_path / "fourth" / "table.csv", encoding="utf-8", newline="") as file:
        masks = [row["mask"] for row in csv.DictReader(file)]
    assert all((tmp_path / "fourth" / mask).is_file() for mask in masks)
    assert main([*again, "--no-images", "--anew", "--seed", "2", "--by", "patient"]) == 0
