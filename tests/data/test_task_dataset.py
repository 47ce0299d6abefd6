"""TaskDataset alone and in worker processes."""

import pickle
import sys
from pathlib import Path
from typing import Any

import miniature_sets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fastht.data import Case, DataError, TaskDataset, load_cases, read_mask
from fastht.data.augment import PaperAugmentation

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)
SIZE = 32
CLASSES = ("benign", "malignant")


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    miniature_sets.busi(tmp_path)
    return load_cases(tmp_path).cases


def made(cases: tuple[Case, ...], **options: Any) -> TaskDataset:
    options = {"with_masks": True, "classes": CLASSES, **options}
    return TaskDataset(cases, SIZE, mean=MEAN, std=STD, **options)


def augmented(cases: tuple[Case, ...], seed: int = 0) -> TaskDataset:
    return made(cases, augment=PaperAugmentation(), seed=seed)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])), key


def test_items(cases: tuple[Case, ...]) -> None:
    dataset = made(cases)
    assert len(dataset) == 5
    for i, label in enumerate((0, 0, 0, 1, 1)):
        item = dataset[i]
        assert set(item) == {"image", "mask", "label", "index", "shape"}
        assert item["shape"].tolist() == [miniature_sets.HEIGHT, miniature_sets.WIDTH]
        assert (item["index"], item["label"]) == (i, label)
        assert (item["image"].dtype, item["mask"].dtype) == (torch.float32, torch.int64)
        picture = Image.open(cases[i].image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        expected = (np.asarray(picture)[None] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(
            STD, (3, 1, 1)
        )
        np.testing.assert_allclose(item["image"], expected, atol=1e-6)
        mask = read_mask(cases[i])
        rows = ((np.arange(SIZE) + 0.5) * mask.shape[0] / SIZE).astype(int)
        columns = ((np.arange(SIZE) + 0.5) * mask.shape[1] / SIZE).astype(int)
        np.testing.assert_array_equal(item["mask"], mask[rows][:, columns])
        assert dataset.file(i) == cases[i].image
    assert_equal(dataset[-1], dataset[4])
    with pytest.raises(IndexError):
        dataset[5]


def test_only_what_is_asked_for(cases: tuple[Case, ...]) -> None:
    bare = tuple(Case(case.name, case.image) for case in cases)
    assert set(made(bare, with_masks=False, classes=None)[0]) == {"image", "index"}
    assert made(bare, with_masks=False)[0]["label"] == -1


def test_classes_keep_their_order_and_are_closed(cases: tuple[Case, ...]) -> None:
    assert made(cases, classes=("malignant", "other", "benign"))[0]["label"] == 2
    with pytest.raises(DataError, match=r"malignant \(1\)\.png: label 'malignant' is none of ben"):
        made(cases, classes=("benign",))


def test_damage_is_named(cases: tuple[Case, ...]) -> None:
    dataset = made(cases)
    miniature_sets.draw(Path(cases[1].masks[0]), np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match=r"benign \(2\)_mask\.png: the mask has 3 x 3 pixels"):
        dataset[1]
    Path(cases[0].image).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"benign \(1\)\.png"):
        dataset[0]


def test_augmentation_depends_on_seed_epoch_and_position_alone(cases: tuple[Case, ...]) -> None:
    dataset = augmented(cases)
    first = [dataset[i] for i in range(5)]
    for i in (3, 1, 4, 0, 2):
        torch.rand(3)
        assert_equal(dataset[i], first[i])
    for epoch in range(1, 9):
        dataset.set_epoch(epoch)
        if any(not torch.equal(dataset[i]["image"], first[i]["image"]) for i in range(5)):
            break
    else:
        pytest.fail("no epoch differs from epoch 0")
    dataset.set_epoch(0)
    assert_equal(dataset[4], first[4])
    others = [augmented(cases, seed)[0]["image"] for seed in range(8)]
    assert any(not torch.equal(image, first[0]["image"]) for image in others)


def test_same_picture_at_two_positions_is_augmented_differently(cases: tuple[Case, ...]) -> None:
    items = [item["image"].numpy().tobytes() for item in augmented(cases[:1] * 20)]
    assert len(set(items)) > 5


def test_global_random_numbers_stay_as_they_were(cases: tuple[Case, ...]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    dataset = augmented(cases)
    for i in range(5):
        dataset[i]
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_items_in_every_epoch(cases: tuple[Case, ...], context: str) -> None:
    if sys.platform == "win32" and context == "fork":
        pytest.skip("no fork")
    dataset, alone = augmented(cases * 2), augmented(cases * 2)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2 if context == "fork" else 1,
        multiprocessing_context=context,
        persistent_workers=True,
    )
    seen = set()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        for i, item in enumerate(loader):
            assert_equal(item, alone[i])
            seen.add(item["image"].numpy().tobytes())
    assert len(seen) > 12  # the epochs differ, in persistent workers too


def test_pickle(cases: tuple[Case, ...]) -> None:
    dataset = augmented(cases)
    dataset.set_epoch(2)
    assert_equal(pickle.loads(pickle.dumps(dataset))[3], dataset[3])


def test_sample() -> None:
    found = load_cases("sample")
    dataset = TaskDataset(
        found.cases, 64, mean=MEAN, std=STD, classes=found.classes, with_masks=True
    )
    item = dataset[7]
    assert 0.01 < item["mask"].float().mean() < 0.3
    assert found.classes[item["label"]] == found.cases[7].label


def letterboxed(cases: tuple[Case, ...], **options: Any) -> TaskDataset:
    return made(cases, resize="letterbox", **options)


def flat_case(tmp_path: Path, width: int, height: int) -> Case:
    """An image of one gray value, all of it foreground."""
    whole = np.ones((height, width), np.uint8)
    for name, value in (("image.png", 150), ("mask.png", 255)):
        miniature_sets.draw(tmp_path / name, whole, value)
    return Case("a", str(tmp_path / "image.png"), (str(tmp_path / "mask.png"),), label="benign")


@pytest.mark.parametrize(("width", "height"), [(64, 40), (40, 64), (50, 50), (200, 26)])
@pytest.mark.parametrize("training", [False, True])
def test_letterboxes_hold_the_whole_image_and_nothing_else(
    tmp_path: Path, width: int, height: int, training: bool
) -> None:
    case = flat_case(tmp_path, width, height)
    augment = PaperAugmentation() if training else None
    dataset = letterboxed((case,), augment=augment)
    tall, wide = round(SIZE * height / max(width, height)), round(SIZE * width / max(width, height))
    black = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    for epoch in range(12 if training else 1):  # whatever is cropped, flipped, blurred
        dataset.set_epoch(epoch)
        item = dataset[0]
        inside = item["inside"]
        assert (inside.dtype, inside.shape) == (torch.bool, (SIZE, SIZE))
        assert [int(inside.any(dim=side).sum()) for side in (1, 0)] == [tall, wide]
        assert torch.equal(item["mask"].bool(), inside)
        border = item["image"][:, ~inside]
        torch.testing.assert_close(border, black[:, None].expand_as(border))
        gray = item["image"][:, inside]
        assert (gray == gray[:, :1]).all()  # nothing of the border crept in
        assert (gray > black[:, None] + 0.3).all()
        assert item["shape"].tolist() == [height, width]


def test_a_letterbox_is_the_image_resized_in_its_middle(cases: tuple[Case, ...]) -> None:
    item = letterboxed(cases)[0]  # 14 x 10 pixels become 32 x 23
    picture = Image.open(cases[0].image).resize((32, 23), Image.Resampling.BICUBIC)
    expected = (np.asarray(picture)[None] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(
        STD, (3, 1, 1)
    )
    np.testing.assert_allclose(item["image"][:, 4:27], expected, atol=1e-6)
    assert not item["mask"][:4].any()
    assert item["mask"][4:27].float().mean() == pytest.approx(read_mask(cases[0]).mean(), abs=0.05)


def test_letterboxes_of_squares_are_squashed_squares(tmp_path: Path) -> None:
    case = flat_case(tmp_path, 50, 50)
    squashed = made((case,), augment=PaperAugmentation())
    boxed = letterboxed((case,), augment=PaperAugmentation())
    for epoch in range(6):
        squashed.set_epoch(epoch)
        boxed.set_epoch(epoch)
        item = boxed[0]
        assert item.pop("inside").all()
        assert_equal(item, squashed[0])


def test_what_is_too_thin_for_a_letterbox_is_named(tmp_path: Path) -> None:
    case = flat_case(tmp_path, 400, 20)
    with pytest.raises(DataError, match=r"image\.png: 400 x 20 pixels are too long and thin"):
        letterboxed((case,))[0]
    assert made((case,))[0]["mask"].all()


def test_pictures_have_their_own_size(cases: tuple[Case, ...]) -> None:
    picture = letterboxed(cases).picture(1)
    np.testing.assert_array_equal(
        picture.permute(1, 2, 0), np.asarray(Image.open(cases[1].image).convert("RGB"))
    )


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_predicting_nothing_of_a_small_lesion_scores_nothing(tmp_path: Path, resize: str) -> None:
    pytest.importorskip("monai")
    from fastht.tasks.images.goals import SegmentationGoal

    mask = np.zeros((800, 1000), np.uint8)
    mask[402:405, 503:506] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask // 2).save(tmp_path / "image.png")
    case = Case("1", str(tmp_path / "image.png"), (str(tmp_path / "mask.png"),))
    for size in (112, 224):
        item = TaskDataset(
            [case], size, mean=(0,) * 3, std=(1,) * 3, with_masks=True, resize=resize
        )[0]
        assert item["mask"].sum() >= 1
        logits = torch.zeros(1, 2, size, size)
        logits[:, 0] = 1  # nothing
        batch = {"mask": item["mask"][None], "shape": item["shape"][None]}
        assert SegmentationGoal().judge(logits, batch)["dice"] == [0.0]
