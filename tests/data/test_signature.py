"""What a run keeps of its data: copies that lie on several sides are told."""

from __future__ import annotations

from pathlib import Path

from fastht.data import Case
from fastht.data.signature import case_entries, note_copies


def note(folder: Path, *files: tuple[str, bytes, str]) -> str:
    cases = []
    for name, content, split in files:
        path = folder / name.partition("::")[0]
        path.write_bytes(content)
        cases.append(Case(name, str(folder / name), split=split))  # type: ignore[arg-type]
    found = note_copies(case_entries(cases))
    return found[0].text if found else ""


def test_copies_on_several_sides_are_told(tmp_path: Path) -> None:
    text = note(
        tmp_path,
        ("a.png", b"1", "train"),
        ("b.png", b"1", "test"),
        ("c.png", b"2", "train"),
        ("d.png", b"2", "train"),
        ("e.png", b"3", "val"),
    )
    assert text.startswith("1 image on several sides, as copies byte by byte: ")
    assert "a.png (train) = b.png (test); scores will be too good" in text


def test_frames_of_a_file_are_no_copies(tmp_path: Path) -> None:
    assert not note(tmp_path, ("a.tif::0", b"1", "train"), ("a.tif::1", b"1", "test"))
    assert note(tmp_path, ("a.tif::0", b"1", "train"), ("b.tif::0", b"1", "test"))
