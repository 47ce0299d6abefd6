"""A run's model card says what the run knows, plainly, and nothing of the machine or a patient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import leave, segmentation
from hub_server import TOKEN, serve
from tiny_towers import randomize, tiny_tower

import fastht
from fastht.cli import main
from fastht.files import write_json
from fastht.tasks.results.card import about_run
from fastht.tasks.results.finished_runs import read_run

SPLIT = {
    "train": {"images": 400, "patients": 180, "without_patient": 0, "classes": {"cyst": 400}},
    "test": {"images": 50, "patients": 24, "without_patient": 0, "classes": {}},
}
RUN = segmentation(0.8, data="/home/who/sets/BUSI", model="local-dir:/home/who/tiny/openai") | {
    "classes": ["benign", "malignant"],
    "intervals": {
        "note": "95 % intervals over 24 patients.",
        "before": {"dice": [0.05, 0.15]},
        "after": {"dice": [0.7, 0.9]},
        "difference": {"dice": [0.6, 0.8]},
    },
    "provenance": {
        "left_out": {"without mask": 3},
        "split": SPLIT,
        "patients_on_several_sides": 0,
    },
}


def card(folder: Path, **changed: Any) -> str:
    run = copy.deepcopy(RUN)
    for name, value in changed.items():
        run[name] = value
    return about_run(read_run(leave(folder, run)))


def _started_from(**changed: str) -> dict[str, Any]:
    tower = {"method": "ht", "train_towers": "none", "data": "sample", "sha256": "0" * 64}
    return {"from_run": "runs/train", "tower": tower | changed}


def adapted(folder: Path) -> Path:
    model = fastht.patch(tiny_tower(), fastht.HTConfig(bottleneck_dim=4))
    randomize(fastht.adapter_parameters(model))
    fastht.save_adapter(model, folder / "adapter", base_model="tiny/none")
    return folder


def test_it_tells_data_scores_and_settings(tmp_path: Path) -> None:
    leave(tmp_path / "run", RUN)
    write_json(
        tmp_path / "run" / "run.json",
        {"options": {"data": "/home/who/sets", "trainer": {"lr": 0.125, "seed": 0}}},
    )
    text = about_run(read_run(tmp_path / "run"))
    assert "| Dice (%) | 10.0 [5.0, 15.0] | 80.0 [70.0, 90.0] | +70.0 [+60.0, +80.0] |" in text
    assert "| HD95 (px) | - | 8.00 | - |" in text
    assert "95 % intervals over 24 patients." in text
    assert "train: 400 images of 180 patients (400 cyst)." in text
    assert "test: 50 images of 24 patients." in text
    assert "Left out: 3 without mask." in text
    assert "No patient is on several sides" in text
    assert "Data: `BUSI`." in text
    assert "`local-dir:tiny/openai`" in text
    assert "Classes: benign, malignant." in text
    assert "lr 0.125" in text
    assert "decoder that trained with the adapters is not in this repository" in text
    assert "who" not in text.replace("whole", "")
    assert "SIMULATED" not in text
    assert "random" not in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": "sample"}, "**These images are SIMULATED**"),
        ({"model": "tiny/none"}, "**The weights of the base are random ones**"),
        ({"percent": 5.0}, "Trained on 5 % of the training side."),
        ({"intervals": {}}, "There are no intervals"),
        ({"provenance": None}, "400 train images, 50 test images."),
        (
            {"provenance": {**RUN["provenance"], "patients_on_several_sides": 2}},
            "**WARNING: 2 patients are on several sides",
        ),
        (
            {"provenance": {**RUN["provenance"], "patients_on_several_sides": None}},
            "No patient is named",
        ),
        (
            {"copies_of_training_images": {"same file": 3, "perhaps": 1, "left_out": 0}},
            "**WARNING: 3 scored images are copies of training images.**",
        ),
        ({"task": "contrastive"}, "chosen on this side too"),
    ],
)
def test_it_says_what_weakens_the_scores(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in card(tmp_path / "run", **changed)
    assert said not in card(tmp_path / "plain")


def test_the_command_pushes_what_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("tyro")
    folder = adapted(leave(tmp_path / "run", RUN | {"data": "sample"}))
    (folder / "best.safetensors").write_bytes(b"the decoder")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve() as hub:
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        assert main(["push", str(folder), "clinic/breast", "--show"]) == 0
        shown = capsys.readouterr().out
        assert "SIMULATED" in shown
        assert hub.asked == []
        assert main(["push", str(folder), "clinic/breast"]) == 0
        repository = hub.repositories["clinic/breast"]
        files = repository.commits[repository.branches["main"]]
        address = f"hf://clinic/breast@{repository.branches['main']}"
        assert address in capsys.readouterr().out
        assert repository.private
        assert files["README.md"].decode() == shown
        assert files.keys() == {
            ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"
        }  # fmt: skip
        fastht.load_adapter(tiny_tower(), address)
        assert main(["push", str(folder), "clinic/open", "--public"]) == 0
        assert not hub.repositories["clinic/open"].private
        hub.fail = 503
        assert main(["push", str(folder), "clinic/breast"]) == 1
        assert "answered 503" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "lora"}, "leaves no HT adapter"),
        ({"train_towers": "all"}, "trained parts of the base too"),
        (_started_from(method="lora"), "started from the image tower of runs/train"),
        (_started_from(train_towers="both"), "started from the image tower of runs/train"),
        (None, "no results.json"),
    ],
)
def test_runs_without_an_adapter_of_their_own_are_refused(
    changed: dict[str, Any] | None, message: str, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("tyro")
    folder = tmp_path / "run"
    if changed is not None:
        leave(folder, RUN | changed)
        if "method" not in changed:
            adapted(folder)
    assert main(["push", str(folder), "clinic/breast", "--show"]) == 1
    assert message in capsys.readouterr().err


def test_a_run_that_started_from_adapters_alone_is_shown(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("tyro")
    folder = adapted(leave(tmp_path / "run", RUN | _started_from(train_towers="text")))
    assert main(["push", str(folder), "clinic/breast", "--show"]) == 0
    assert "80.0" in capsys.readouterr().out
