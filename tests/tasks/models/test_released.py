"""Checkpoints named as Ultrasound-CLIP's: what is loaded, left over, and refused."""

import pytest
import torch

from fastht.tasks.models.build import build_clip, model_source
from fastht.tasks.models.released import released_state
from fastht.taxonomy import load_taxonomy
from fastht.taxonomy.graph import TagGraph


def checkpoint(model, path, **changes):
    """A file as the published trainer writes them, with weights of the model made larger."""
    base = {f"base_clip.{name}": t + 1 for name, t in model.state_dict().items()}
    graph = TagGraph(load_taxonomy(), 16, mode="published").state_dict()
    state = base | graph | changes
    torch.save(
        {"epoch": 3, "name": "a run", "state_dict": {f"module.{k}": v for k, v in state.items()}},
        path,
    )


def test_the_names_of_the_release_are_loaded_and_the_rest_is_told(tiny_model, tmp_path, capsys):
    model, _ = build_clip(tiny_model, "none")
    file = tmp_path / "released.pt"
    checkpoint(model, file)
    loaded, _ = build_clip(tiny_model, str(file))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor + 1), name
    printed = capsys.readouterr().out
    assert f"{len(model.state_dict())} weights loaded" in printed
    assert "left over (graph_encoder, text_graph_fusion)" in printed
    graph = TagGraph(load_taxonomy(), 16, mode="published")
    assert graph.load_published(released_state(file)) == []


def test_another_model_s_checkpoint_is_one_error(tiny_model, tmp_path):
    model, _ = build_clip(tiny_model, "none")
    file = tmp_path / "other.pt"
    checkpoint(model, file, **{"base_clip.logit_scale": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"logit_scale is \(3,\), and \(\) in the model.*--model"):
        build_clip(tiny_model, str(file))


def test_other_files_are_for_others_to_read(tiny_model, tmp_path):
    model, _ = build_clip(tiny_model, "none")
    plain = tmp_path / "plain.pt"
    torch.save({"state_dict": model.state_dict()}, plain)
    assert released_state(plain) is None
    text = tmp_path / "text.pt"
    text.write_text("no weights")
    assert released_state(text) is None
    torch.save({"state_dict": {"base_clip.x": object()}}, plain)  # would have to be unpickled
    assert released_state(plain) is None


def test_biomedclip_has_a_name_of_its_own():
    assert model_source("biomedclip").startswith("hf-hub:microsoft/BiomedCLIP")
