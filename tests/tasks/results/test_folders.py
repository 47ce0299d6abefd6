"""Names of folders after the runs in them."""

from pathlib import Path

import pytest

from fastht.tasks.results.folders import inner_folder, run_folder


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("sets/BUSI", "ViT-B-16"), "segment-BUSI-ViT-B-16"),
        (("sets/BUSI/", "hf-hub:org/Biomed-CLIP"), "segment-BUSI-Biomed-CLIP"),
        (("my pairs (new).csv", "timm:vit_tiny"), "segment-my-pairs-new-vit_tiny"),
        (("shards/{000..009}.tar", "local-dir:/models/own"), "segment-shards-own"),
        (("v1.2", "ViT-B-16"), "segment-v1.2-ViT-B-16"),
        (("größe.tsv",), "segment-größe"),
        (("{0..9}.tar",), "segment-0..9"),
        (("///",), "segment-data"),
    ],
)
def test_a_folder_is_named_after_its_run(parts, name):
    assert run_folder("segment", *parts) == Path("runs") / name


def test_the_present_folder_has_a_name(monkeypatch, tmp_path):
    (tmp_path / "BUSI").mkdir()
    monkeypatch.chdir(tmp_path / "BUSI")
    assert run_folder("classify", ".") == Path("runs/classify-BUSI")


def test_what_comes_of_a_run_lies_in_its_folder():
    found = inner_folder(Path("runs/sample"), "zeroshot", "sets/BUSI")
    assert found == Path("runs/sample/zeroshot-BUSI")
