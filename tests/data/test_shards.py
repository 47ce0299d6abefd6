"""load_shards and read_member on shards that webdataset itself wrote."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from fastht.data import DataError, Record, load_records, load_shards, read_image, read_member

CAPTION = "Anechoic cyst with posterior enhancement, liver."


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for i, sample in enumerate(samples):
            writer.write({"__key__": f"{i:06d}", **sample})
    return path


def pair(value: int, caption: str = CAPTION) -> dict[str, Any]:
    return {"png": png(value), "txt": caption.encode()}


def test_round_trip(tmp_path: Path) -> None:
    shard = write(tmp_path / "s.tar", [pair(i, f"{CAPTION}  {i}\n") for i in range(5)])
    found = load_shards(str(shard))
    assert found.records == tuple(
        Record(f"{shard}::{i:06d}.png", f"{CAPTION} {i}") for i in range(5)
    )
    for i in (3, 0, 4):  # in any order
        assert read_member(found.records[i].image) == png(i)
        assert read_image(read_member(found.records[i].image)).getpixel((0, 0)) == (i, i, i)
    assert load_records(shard) == load_records(str(shard)) == found


@pytest.mark.parametrize("key", ["caption", "title", "text"])
def test_json_captions_and_attributes(tmp_path: Path, key: str) -> None:
    attributes = {key: CAPTION, "label": 3, "patient": "p7", "frame": 2, "extra": [1]}
    both = {"png": png(1), "txt": b"The text member comes first.", "json": b'{"caption": "no"}'}
    shard = write(
        tmp_path / "s.tar", [{"jpg": b"raw", "json": json.dumps(attributes).encode()}, both]
    )
    assert load_shards(str(shard)).records == (
        Record(f"{shard}::000000.jpg", CAPTION, "3", "p7", 2),
        Record(f"{shard}::000001.png", "The text member comes first."),
    )


def test_extensions_folders_and_keys(tmp_path: Path) -> None:
    names = ["a/1.JPG", "a/1.txt", "b/1.dcm", "b/1.txt", "b/1.seg.png", "v1.2/x.tiff", "v1.2/x.txt"]
    names += ["c.gif", "c.txt"]
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            data = CAPTION.encode() if name.endswith("txt") else name.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = load_shards(str(path))
    members = [record.image.partition("::")[2] for record in found]
    assert members == ["a/1.JPG", "b/1.dcm", "v1.2/x.tiff", "c.gif"]
    assert [read_member(record.image).decode() for record in found] == members


def test_drops_are_counted(tmp_path: Path) -> None:
    samples = [pair(1), {"txt": CAPTION.encode()}, {"png": png(2)}, pair(3, "short")]
    samples += [{"png": png(4), "json": b'{"label": "x"}'}, {"mp4": b"x"}]
    found = load_shards(str(write(tmp_path / "s.tar", samples)))
    assert len(found) == 1
    assert found.dropped == {
        "sample without image": 2,
        "sample without caption": 2,
        "caption shorter than 20 characters": 1,
    }
    with pytest.raises(DataError, match="1 sample without caption"):
        load_shards(str(write(tmp_path / "t.tar", [{"png": png(2)}])))


def tar(path: Path, names: list[str]) -> Path:
    """A shard of members of these names, captions where they end in txt."""
    with tarfile.open(path, "w") as file:
        for name in names:
            data = CAPTION.encode() if name.endswith("txt") else png(1)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_dots_within_names_are_told_by_the_member(tmp_path: Path) -> None:
    dotted = [f"1.2.840.{i}.{suffix}" for i in range(4) for suffix in ("jpg", "txt")]
    with pytest.raises(DataError, match=r"4 image with dots within its name") as caught:
        load_shards(str(tar(tmp_path / "a.tar", dotted)))
    assert r"8 files in the shards with dots within the name: 1.2.840.0.jpg" in str(caught.value)
    assert "write them with _ instead" in str(caught.value)
    some = load_shards(str(tar(tmp_path / "b.tar", ["a.jpg", "a.txt", *dotted[:4]])))
    assert len(some) == 1
    assert some.dropped == {"image with dots within its name": 2}


def test_members_that_are_not_read_are_counted_by_kind(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt", "a.svg", "b.jp2", "b.png", "b.txt", "README"]
    (note,) = load_shards(str(tar(tmp_path / "a.tar", names))).notes
    assert (note.kind, note.count) == ("files_not_read", 3)
    for kind in ("1 .svg", "1 .jp2", "1 without suffix"):
        assert kind in note.text


def test_patients_of_shards_by_another_name(tmp_path: Path) -> None:
    def sample(**attributes: Any) -> dict[str, Any]:
        return {"png": png(1), "json": json.dumps({"caption": CAPTION, **attributes}).encode()}

    shard = write(tmp_path / "s.tar", [sample(patient_id=7, site="x"), sample(patient_id=8)])
    found = load_records(shard)
    assert [record.patient for record in found] == ["7", "8"]
    kinds = {note.kind: note.text for note in found.notes}
    assert kinds.keys() == {"columns_by_meaning", "columns_not_read"}
    assert "site" in kinds["columns_not_read"]
    assert load_records(shard, patient_key="site").records[0].patient == "x"
    with pytest.raises(DataError, match="no attribute 'who'; correct --patient-key"):
        load_records(shard, patient_key="who")


# Patterns


def test_braces_and_globs(tmp_path: Path) -> None:
    for i in range(8, 12):
        write(tmp_path / f"s-{i:05d}.tar", [pair(i)])
    for pattern in ("s-{00008..00011}.tar", "s-*.tar", "s-000{0..1}?.tar"):
        found = load_shards(str(tmp_path / pattern))
        names = [os.path.basename(record.image) for record in found]
        assert names == [f"s-{i:05d}.tar::000000.png" for i in range(8, 12)]
    for i in range(11):
        for j in (9, 10):
            write(tmp_path / f"{i}-{j}.tar", [pair(i)])
    assert len(load_shards(str(tmp_path / "{0..10}-{9..10}.tar"))) == 22


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    for i in (0, 2):
        write(tmp_path / f"s-{i:03d}.tar", [pair(i)])
    with pytest.raises(DataError, match=r"2 of 4 shards are missing: .*s-001\.tar, .*s-003\.tar"):
        load_shards(str(tmp_path / "s-{000..003}.tar"))
    with pytest.raises(DataError, match="no file matches"):
        load_shards(str(tmp_path / "t-*.tar"))
    with pytest.raises(DataError, match="empty range"):
        load_shards(str(tmp_path / "s-{3..1}.tar"))


def test_a_path_that_looks_like_a_pattern(tmp_path: Path) -> None:
    shard = write(tmp_path / "s[1]{0..3}.tar", [pair(1)])
    found = load_shards(str(shard))
    assert read_member(found.records[0].image) == png(1)


# Damage


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compressed(tmp_path: Path, module: Any) -> None:
    path = write(tmp_path / "s.tar", [pair(1)])
    path.write_bytes(module.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"s\.tar: compressed by .*decompress it"):
        load_shards(str(path))
    with pytest.raises(DataError, match=r"s\.tar\.gz: .*decompress"):
        load_shards(str(path) + ".gz")


def test_truncated_anywhere(tmp_path: Path) -> None:
    """A cut in a member, at a member's end and in the end mark are all noticed."""
    shard = write(tmp_path / "s.tar", [pair(i) for i in range(3)])
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [member.offset for member in tar.getmembers()] + [tar.offset]
    for size in (0, 100, 600, *ends[1:], ends[-2] + 700, ends[-1] + 100):
        shard.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"s\.tar"):
            load_shards(str(shard))


def test_damaged_header(tmp_path: Path) -> None:
    shard = write(tmp_path / "s.tar", [pair(i) for i in range(3)])
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        offset = tar.getmembers()[2].offset
    data[offset : offset + 20] = b"#" * 20
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"s\.tar: cut off or damaged after 2 files"):
        load_shards(str(shard))
    shard.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"s\.tar: not a sound tar file"):
        load_shards(str(shard))


def test_bad_members_are_named(tmp_path: Path) -> None:
    for sample, message in [
        ({"json": b"{"}, r"000000\.json: not JSON"),
        ({"json": b"[1]"}, r"000000\.json: not a JSON object"),
        ({"json": b'{"caption": "x", "frame": "y"}'}, r"000000\.json: frame 'y'"),
        ({"txt": "größer".encode("latin-1")}, r"000000\.txt: not UTF-8"),
    ]:
        shard = write(tmp_path / "s.tar", [{"png": png(0), **sample}])
        with pytest.raises(DataError, match=message):
            load_shards(str(shard))


def test_repeated_members(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match="several members of the same name"):
        load_shards(str(path))


def test_read_member_errors_and_replaced_shards(tmp_path: Path) -> None:
    shard = write(tmp_path / "s.tar", [pair(1)])
    assert read_member(f"{shard}::000000.png") == png(1)
    with pytest.raises(DataError, match=r"s\.tar::000009\.png: no such member"):
        read_member(f"{shard}::000009.png")
    with pytest.raises(DataError, match="not of the form"):
        read_member(str(shard))
    with pytest.raises(DataError, match=r"t\.tar: cannot be read"):
        read_member(f"{tmp_path}/t.tar::000000.png")
    write(shard, [{"aaa": b"x" * 5000, **pair(2)}])
    assert read_member(f"{shard}::000000.png") == png(2)  # not what lay at the old offset


def test_index_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path / "s.tar", [pair(i) for i in range(3)])
    opened: list[object] = []
    original = tarfile.open

    def counted(*args: Any, **keywords: Any) -> tarfile.TarFile:
        opened.append(args)
        return original(*args, **keywords)

    monkeypatch.setattr(tarfile, "open", counted)
    for record in load_shards(str(shard)):
        read_member(record.image)
    assert len(opened) == 1


def test_shards_of_gnu_tar(tmp_path: Path) -> None:
    if shutil.which("tar") is None or sys.platform == "win32":
        pytest.skip("no tar program")
    (tmp_path / "d").mkdir()
    for i in range(2):
        (tmp_path / "d" / f"{i}.png").write_bytes(png(i))
        (tmp_path / "d" / f"{i}.txt").write_text(CAPTION)
    subprocess.run(["tar", "cf", "s.tar", "./d"], cwd=tmp_path, check=True)
    found = load_shards(str(tmp_path / "s.tar"))
    values = {os.path.basename(r.image): read_member(r.image) for r in found}
    assert values == {"0.png": png(0), "1.png": png(1)}
