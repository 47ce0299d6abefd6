"""Adapters go to a Hub and come back as they were, or nothing changes: on a stand-in for it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from hub_server import TOKEN, Hub, serve
from tiny_towers import images, randomize, snapshot, tiny_tower
from torch import nn

import fastht
from fastht import CheckpointError, HTConfig, HubError, load_adapter, push_to_hub
from fastht.hub.access import parse_address
from fastht.hub.card import BEGIN, END, merge_cards, public_name

constants = pytest.importorskip("huggingface_hub.constants")

CONFIG = HTConfig(bottleneck_dim=4)
REPO = "clinic/breast"
FILES = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Iterator[Hub]:
    """An empty Hub with an empty cache, on which nobody may print a token or leave a warning."""
    server.repositories.clear()
    server.asked.clear()
    server.fail, server.before_commit = None, lambda: None
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # large files go by the older of the Hub's protocols
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield server
    assert TOKEN not in "".join(capfd.readouterr())


def trained(seed: int = 1, **tower: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = fastht.patch(tiny_tower(**tower), CONFIG)
    randomize(fastht.adapter_parameters(model), seed)
    return model.eval()


def fetched(hub: Hub) -> list[str]:
    return [path.rpartition("/")[2] for method, path in hub.asked if method == "GET"]


def test_what_is_pushed_loads_as_it_was(hub: Hub) -> None:
    model = trained()
    address = push_to_hub(model, REPO, base_model="Tiny/none")
    repository = hub.repositories[REPO]
    assert repository.private
    commit = repository.branches["main"]
    assert address == f"hf://{REPO}@{commit}"
    assert len(repository.commits) == 2  # the Hub's own and ours: one commit for all files
    assert set(repository.commits[commit]) == FILES

    other = tiny_tower()
    before = other(images())
    repository.commit({"pytorch_model.bin": b"a pickle", "adapter_model.bin": b"another"})
    hub.asked.clear()
    assert load_adapter(other, f"hf://{REPO}") is other
    assert torch.equal(other(images()), model(images()))
    assert not torch.equal(other(images()), before)
    assert fastht.adapter_source(other) == f"hf://{REPO}@{repository.branches['main']}"
    assert sorted(fetched(hub)) == ["adapter_config.json", "adapter_model.safetensors"]
    as_option = load_adapter(tiny_tower(), Path(f"hf://{REPO}@main"))
    assert fastht.adapter_source(as_option) == fastht.adapter_source(other)


def test_revisions_are_branches_tags_and_commits(hub: Hub) -> None:
    first = push_to_hub(trained(1), REPO)
    repository = hub.repositories[REPO]
    repository.branches["v1"] = repository.branches["main"]
    second = push_to_hub(trained(2), REPO)
    assert first != second
    for revision, seed in (
        ("", 2),
        ("@main", 2),
        ("@v1", 1),
        (first[-41:], 1),
    ):
        model = load_adapter(tiny_tower(), f"hf://{REPO}{revision}")
        assert torch.equal(model(images()), trained(seed)(images())), revision
    repository.branches["trial"] = repository.branches["v1"]
    push_to_hub(trained(3), REPO, revision="trial")
    assert repository.branches["main"] == second[-40:]
    assert "parameters" in repository.commits[repository.branches["trial"]]["README.md"].decode()


def test_a_folder_is_pushed_without_the_paths_of_the_machine(hub: Hub, tmp_path: Path) -> None:
    model = trained()
    fastht.save_adapter(
        model, tmp_path / "saved", base_model="local-dir:/home/jdoe/models/tiny/none"
    )
    push_to_hub(tmp_path / "saved", REPO, about="## Data\n\nNobody's.")
    repository = hub.repositories[REPO]
    files = repository.commits[repository.branches["main"]]
    assert json.loads(files["adapter_config.json"])["base_model"]["name"] == "local-dir:tiny/none"
    assert b"jdoe" not in b"".join(files.values())
    card = files["README.md"].decode()
    assert "Nobody's." in card
    assert "No run was given" not in card
    assert f'fastht.load_adapter(model, "hf://{REPO}")' in card
    loaded = load_adapter(tiny_tower(), f"hf://{REPO}")
    assert torch.equal(loaded(images()), model(images()))


def test_without_the_network_the_cache_is_used_and_that_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = push_to_hub(trained(), REPO)
    expected = load_adapter(tiny_tower(), f"hf://{REPO}")(images())
    hub.asked.clear()
    assert torch.equal(load_adapter(tiny_tower(), address)(images()), expected)
    assert hub.asked == []  # a commit stands for one content for ever

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load_adapter(tiny_tower(), f"hf://{REPO}")
    assert torch.equal(model(images()), expected)
    assert fastht.adapter_source(model) == address
    with pytest.raises(HubError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        load_adapter(tiny_tower(), "hf://clinic/thyroid")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, so nothing can be put there"):
        push_to_hub(trained(), REPO)
    assert hub.asked == []

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _cut(monkeypatch)
    with pytest.warns(
        UserWarning, match=r"does not answer.*Taken from the cache: hf://.*@[0-9a-f]"
    ):
        model = load_adapter(tiny_tower(), f"hf://{REPO}")
    assert torch.equal(model(images()), expected)
    for lost in ("hf://clinic/thyroid", f"hf://clinic/thyroid@{'0' * 40}"):
        with pytest.raises(HubError, match="does not answer"):
            load_adapter(tiny_tower(), lost)
    with pytest.raises(HubError, match="does not answer"):
        push_to_hub(trained(), REPO)


def _cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's endpoint be a port that nobody listens at."""
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    template = nobody + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's attempts


@pytest.mark.parametrize("damage", ["weights", "config", "peft", "nothing"])
def test_what_is_not_whole_is_refused_and_the_model_stays(hub: Hub, damage: str) -> None:
    push_to_hub(trained(), REPO)
    repository = hub.repositories[REPO]
    files = dict(repository.commits[repository.branches["main"]])
    weights, config = files["adapter_model.safetensors"], files["adapter_config.json"]
    harm = {
        "weights": {"adapter_model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])},
        "config": {"adapter_config.json": config.replace(b'"dropout": 0.1', b'"dropout": 0.2')},
        "peft": {"adapter_config.json": b'{"peft_type": "LORA"}'},
        "nothing": {},
    }[damage]
    assert damage == "nothing" or harm[next(iter(harm))] != files[next(iter(harm))]
    repository.commit(harm)
    if damage == "nothing":
        repository.commits[repository.branches["main"]] = {"model.safetensors": weights}
    model = tiny_tower()
    before = snapshot(model)
    message = {
        "weights": "does not match the SHA-256",
        "config": "does not match its own SHA-256",
        "peft": "peft wrote it",
        "nothing": "holds no adapter of fastht",
    }[damage]
    with pytest.raises(HubError if damage == "nothing" else CheckpointError, match=message):
        load_adapter(model, f"hf://{REPO}")
    assert snapshot(model) == before
    if damage == "peft":
        with pytest.raises(CheckpointError, match="peft wrote it; use another repository"):
            push_to_hub(trained(), REPO)
        after = repository.commits[repository.branches["main"]]
        assert after["adapter_config.json"] == harm["adapter_config.json"]


def test_a_card_keeps_what_its_owner_wrote(hub: Hub) -> None:
    push_to_hub(trained(1), REPO, base_model="first")
    repository = hub.repositories[REPO]
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert "No run was given" in card
    edited = card.replace("tags:", "license: mit\ntags:") + "\nWritten by the owner.\n"
    repository.commit({"README.md": edited.encode()})
    push_to_hub(trained(2), REPO, base_model="second")
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert "license: mit" in card
    assert "Written by the owner." in card
    assert "`second`" in card
    assert "first" not in card

    own = b"# Of the owner alone\n"
    repository.commit({"README.md": own})
    with pytest.warns(UserWarning, match="left as it is"):
        push_to_hub(trained(3), REPO)
    files = repository.commits[repository.branches["main"]]
    assert files["README.md"] == own
    loaded = load_adapter(tiny_tower(), f"hf://{REPO}")
    assert torch.equal(loaded(images()), trained(3)(images()))


def test_marks_that_are_not_one_pair_are_the_owners() -> None:
    new = f"head\n{BEGIN}\nnew\n{END}\n"
    assert (
        merge_cards(f"mine\n{BEGIN}\nold\n{END}\nmine", new) == f"mine\n{BEGIN}\nnew\n{END}\nmine"
    )
    for there in ("", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"):
        assert merge_cards(there, new) is None


def test_who_sees_a_repository_is_the_owners_choice(hub: Hub) -> None:
    push_to_hub(trained(), REPO, private=False)
    assert not hub.repositories[REPO].private
    commit = push_to_hub(trained(2), REPO)
    assert not hub.repositories[REPO].private
    with pytest.raises(HubError, match="is public already"):
        push_to_hub(trained(3), REPO, private=True)
    assert hub.repositories[REPO].branches["main"] == commit[-40:]


def test_a_commit_of_somebody_else_meanwhile_is_not_written_over(hub: Hub) -> None:
    push_to_hub(trained(1), REPO)
    repository = hub.repositories[REPO]
    theirs = []
    hub.before_commit = lambda: theirs.append(repository.commit({"notes.md": b"theirs"}))
    with pytest.raises(HubError, match=r"412.*somebody else"):
        push_to_hub(trained(2), REPO)
    assert repository.branches["main"] == theirs[-1]


def test_refusals_are_one_line_without_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(trained(), REPO)
    hub.add("clinic/open", private=False)
    model = tiny_tower()
    before = snapshot(model)
    said = []

    def refused(match: str, call: Any) -> None:
        with pytest.raises(HubError, match=match) as caught:
            call()
        said.append(str(caught.value))

    refused("no such branch, tag or commit", lambda: load_adapter(model, f"hf://{REPO}@v9"))
    refused("no such branch", lambda: push_to_hub(trained(), REPO, revision="v9"))
    refused("holds no adapter", lambda: load_adapter(model, "hf://clinic/open"))
    hub.fail = 500
    refused(r"answered 500 \(Internal Error\); try", lambda: load_adapter(model, f"hf://{REPO}"))
    hub.fail = None
    refused("HF_TOKEN", lambda: push_to_hub(trained(), "clinic/open", token="hf_another"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    refused("private and not yours", lambda: load_adapter(model, f"hf://{REPO}"))
    refused("log in", lambda: push_to_hub(trained(), "clinic/new"))
    assert not any("\n" in text or TOKEN in text or "hf_another" in text for text in said)
    assert snapshot(model) == before
    assert "clinic/new" not in hub.repositories


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://one", "hf://a/b/c", "hf://a/b@", "hf://a/b@x y", "hf://../b", "hf://a/b@c@d"],
)
def test_addresses_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give hf://ORG/REPO"):
        parse_address(text)
    model = tiny_tower()
    before = snapshot(model)
    with pytest.raises(ValueError, match="give hf://ORG/REPO"):
        load_adapter(model, text)
    assert snapshot(model) == before


def test_names_of_bases_lose_their_folders() -> None:
    names = {
        None: None,
        "ViT-B-16/openai": "ViT-B-16/openai",
        "hf-hub:org/model/none": "hf-hub:org/model/none",
        "ViT-B-16//home/who/w.pt": "ViT-B-16/w.pt",
        "/home/who/model/none": "model/none",
    }
    assert {name: public_name(name) for name in names} == names


def test_the_source_is_of_the_last_load(tmp_path: Path) -> None:
    model = trained()
    assert fastht.adapter_source(model) is None
    fastht.save_adapter(model, tmp_path)
    loaded = load_adapter(tiny_tower(), tmp_path)
    assert fastht.adapter_source(loaded) == str(tmp_path)
    fastht.unpatch(loaded)
    with pytest.raises(fastht.NotPatchedError):
        fastht.adapter_source(loaded)


def test_the_variables_of_the_environment_are_followed(hub: Hub, tmp_path: Path) -> None:
    """In processes of their own, since huggingface_hub reads them when it is imported."""
    model = trained()
    push_to_hub(model, REPO)
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from tiny_towers import images, tiny_tower\n"
        "import fastht\n"
        f"model = fastht.load_adapter(tiny_tower(), 'hf://{REPO}')\n"
        "print(fastht.adapter_source(model), model(images()).double().sum().item())\n"
    )
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_TOKEN": TOKEN}
    told = []
    for offline in ("", "1"):
        hub.asked.clear()
        done = fresh.run(
            code,
            env={**os.environ, **own, "HF_HUB_OFFLINE": offline},
            cwd=Path(__file__).parent.parent,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert bool(hub.asked) == (not offline)
        told.append(done.stdout)
    assert told[0] == told[1]
    assert told[0].split()[0] == f"hf://{REPO}@{hub.repositories[REPO].branches['main']}"
    assert float(told[0].split()[1]) == pytest.approx(
        model(images()).double().sum().item(), abs=1e-4
    )
