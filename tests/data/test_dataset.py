"""ImageTextDataset alone and in worker processes."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from fastht.data import DataError, ImageTextDataset, Record, load_shards

CAPTION = "Heterogeneous mass with irregular margins."


@pytest.fixture
def files(tmp_path: Path) -> list[Record]:
    for i in range(6):
        Image.new("L", (5, 4), 10 * i).save(tmp_path / f"{i}.png")
    return [Record(str(tmp_path / f"{i}.png"), f"{CAPTION} {i}") for i in range(6)]


@pytest.fixture
def shard(files: list[Record], tmp_path: Path) -> list[Record]:
    """The same images and captions in a shard."""
    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for i, record in enumerate(files):
            data = Path(record.image).read_bytes()
            writer.write({"__key__": str(i), "png": data, "txt": record.caption.encode()})
    return list(load_shards(str(path)))


def assert_item(item: dict[str, Any], i: int) -> None:
    assert set(item) == {"image", "index", "caption"}
    assert item["image"].shape == (3, 4, 5)
    assert (item["image"] == 10 * i).all()
    assert item["index"] == i
    assert item["caption"] == f"{CAPTION} {i}"


@pytest.mark.parametrize("kind", ["files", "shard"])
def test_items(kind: str, request: pytest.FixtureRequest) -> None:
    records = request.getfixturevalue(kind)
    dataset = ImageTextDataset(records, pil_to_tensor)
    assert len(dataset) == 6
    for i in (5, 0, 3, 3):
        assert_item(dataset[i], i)
        assert dataset.file(i) == records[i].image
    assert_item(dataset[-1], 5)
    with pytest.raises(IndexError):
        dataset[6]


def test_frame_of_the_record_is_read(tmp_path: Path) -> None:
    pages = [Image.new("L", (5, 4), value) for value in (1, 2, 3)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    records = [Record(str(path), CAPTION, frame=2), Record(str(path), CAPTION)]
    dataset = ImageTextDataset(records, pil_to_tensor)
    assert [int(dataset[i]["image"].max()) for i in (0, 1)] == [3, 2]


def test_broken_image_is_named(files: list[Record], shard: list[Record], tmp_path: Path) -> None:
    Path(files[2].image).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2\.png"):
        ImageTextDataset(files, pil_to_tensor)[2]
    path = tmp_path / "t.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        writer.write({"__key__": "x", "png": b"broken", "txt": CAPTION.encode()})
    with pytest.raises(DataError, match=r"t\.tar::x\.png"):
        ImageTextDataset(load_shards(str(path)).records, pil_to_tensor)[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_items(
    shard: list[Record], files: list[Record], context: str
) -> None:
    if sys.platform == "win32" and context == "fork":
        pytest.skip("no fork")
    records = [record for both in zip(shard, files, strict=True) for record in both]
    loader = DataLoader(
        ImageTextDataset(records, pil_to_tensor),
        batch_size=None,
        num_workers=2 if context == "fork" else 1,
        multiprocessing_context=context,
    )
    items = list(loader)
    assert [item["index"] for item in items] == list(range(12))
    for position, item in enumerate(items):
        assert_item({**item, "index": position // 2}, position // 2)


def test_error_crosses_the_worker_boundary(files: list[Record]) -> None:
    Path(files[1].image).unlink()
    loader = DataLoader(ImageTextDataset(files, pil_to_tensor), batch_size=2, num_workers=1)
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        list(loader)


def test_pickle(shard: list[Record]) -> None:
    assert_item(pickle.loads(pickle.dumps(ImageTextDataset(shard, pil_to_tensor)))[4], 4)


def test_import_needs_no_extras() -> None:
    code = (
        "import sys\n"
        "for name in ('open_clip', 'pydicom', 'webdataset', 'pandas', 'timm', 'torchvision'):\n"
        "    sys.modules[name] = None\n"
        "import fastht.data\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
