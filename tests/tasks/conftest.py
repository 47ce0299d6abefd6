"""A data set and a model so small that whole training runs fit into tests."""

import csv
import functools
import importlib.util
import json
import sys
from importlib import resources

import numpy as np
import pytest
from PIL import Image

_DRAWN = set()  # kinds of pictures
CLASSES = ("anechoic fluid filled cyst", "bright echogenic solid mass")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, one_tokenizer):
    """An open_clip model of a few thousand vision parameters, as --model takes it."""
    folder = tmp_path_factory.mktemp("model")
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def one_tokenizer():
    """Read open_clip's vocabulary once a model, and not in each of hundreds of commands."""
    open_clip = pytest.importorskip("open_clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        yield


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A table of 40 images, dark or bright in their middle, with captions that say so."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "label"])
        for i in range(40):
            image = generator.integers(80, 160, (32, 32), dtype=np.uint8)
            image[8:24, 8:24] = 10 if i % 2 == 0 else 240
            Image.fromarray(image).save(folder / f"{i:02}.png")
            label = CLASSES[i % 2]
            writer.writerow([f"{i:02}.png", f"Ultrasound {i} showing a {label}", label])
    return folder / "pairs.csv"


@pytest.fixture(scope="session")
def trained(pairs, tiny_model, tmp_path_factory):
    """Return a function that gives the folder of a run on the pairs, by its method.

    It trains once for all tests, which only read the run: copy it, to change something in it.
    """
    from clip_runs import train_pairs

    done = {}
    folder = tmp_path_factory.mktemp("trained")

    def give(method="ht"):
        if method not in done:
            train_pairs(pairs, tiny_model, folder / method, method=method)
            done[method] = folder / method
        return done[method]

    return give


@pytest.fixture(scope="session")
def tagged_pairs(pairs):
    """The pairs with two columns of tags, which some rows lack."""
    with pairs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        solid = "solid" in row["title"]
        row["Diagnosis"] = "" if i < 5 else "mass" if solid else "cyst"
        row["Echogenicity"] = "" if i % 3 == 0 else "hyperechoic" if solid else "anechoic"
    path = pairs.with_name("tagged.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table of the first 48 images of the sample, of 24 patients."""
    source = resources.files("fastht.data") / "sample" / "sample.csv"
    with source.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:48]
    for row in rows:
        for column in ("filepath", "mask"):
            row[column] = str(source.parent / row[column])
    path = tmp_path_factory.mktemp("few") / "few.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module", autouse=True)
def pictures():
    """Draw each kind of picture once in a run of the tests, and leave the others blank.

    All that is in them is made; how it looks is seen by the tests in tests/tasks/results. Drawing
    takes a third of a command's time.
    """
    if importlib.util.find_spec("matplotlib") is None:
        yield None
        return
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def save(self, path, **options):
        kind = sys._getframe(1).f_code  # the function that made it
        if kind in _DRAWN:
            Image.new("L", (1, 1)).save(path)
        else:
            _DRAWN.add(kind)
            draw(self, path, **options | {"dpi": 30})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield draw


@pytest.fixture
def drawn(pictures, monkeypatch):
    """Draw them all, for a test that looks at them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", pictures)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the tests' text embeddings away from the user's."""
    monkeypatch.setenv("FASTHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the precision: accelerate keeps the first one of a process for good."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
