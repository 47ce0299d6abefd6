"""Adapters to the Hub: the two files and a model card, in one commit."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastht.checkpoint import adapter_source, save_adapter
from fastht.hub.access import SCHEME, Address, HubError, check_names, client, is_offline, told
from fastht.hub.card import merge_cards, public_name, write_card
from fastht.saved import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    CheckpointError,
    SavedAdapter,
    origin_of,
    read_adapter,
    write_adapter,
)

CARD_NAME = "README.md"


def push_to_hub(
    model: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "HT adapters",
    about: str = "",
    token: str | bool | None = None,
) -> str:
    """Put a patched model's adapters into a repository of the Hugging Face Hub, in one commit.

    That is ``adapter_config.json``, ``adapter_model.safetensors`` and a model card; nothing is
    pickled, other files of the repository are left alone, and of the base's name the folders of
    this machine are left out. Of a card that is there, the lines between fastht's marks are
    replaced; one without marks is left as it is, with a warning. ``HF_ENDPOINT`` names another Hub.

    Args:
        model: a patched model, or the folder that :func:`fastht.save_adapter` wrote.
        repo_id: ``"ORG/REPO"``; made if it is not there.
        base_model: what the base is called; default for a folder: as it is in there.
        private: of a new repository; it is private unless this is ``False``. With ``True`` a public
            one that is there is refused.
        revision: a branch that is there; default: the main one.
        message: of the commit.
        about: Markdown for the card on data and scores; ``fastht push`` writes it from a run.
        token: as huggingface_hub takes it; default: that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The address with the commit, ``"hf://ORG/REPO@COMMIT"``, for :func:`fastht.load_adapter`.

    Raises:
        NotPatchedError: the model has no adapters.
        CheckpointError: the adapter is not whole or not finite, or the repository holds one of
            another library.
        HubError: the Hub refuses or does not answer, or the repository is public.
        ImportError: huggingface_hub is not installed.
        ValueError: ``repo_id`` or ``revision`` is no name, or the model is sharded.
    """
    check_names(repo_id, revision)
    api = client(token)
    address = Address(repo_id, revision)
    if is_offline():
        raise HubError(f"{address}: HF_HUB_OFFLINE is set, so nothing can be put there; remove it")
    with tempfile.TemporaryDirectory(prefix="fastht-") as temporary:
        folder = Path(temporary)
        saved = _write_public(model, base_model, folder)
        origin = adapter_source(model) if isinstance(model, nn.Module) else None
        if origin is not None and not origin.startswith(SCHEME):
            origin = None
        card = write_card(saved, repo_id, about, origin or "")
        with told(address, api):
            head = _prepare(api, address, private)
            contents: dict[str, Any] = {name: folder / name for name in (WEIGHTS_NAME, CONFIG_NAME)}
            merged = _merged(api, address, card, head)
            if merged is not None:
                contents[CARD_NAME] = merged.encode()
            commit = _commit(api, address, contents, message, head)
    return str(Address(repo_id, commit))


def _write_public(
    model: nn.Module | str | os.PathLike[str], base_model: str | None, folder: Path
) -> SavedAdapter:
    """Write the adapter to ``folder``, under a name of its base that shows no path; return it."""
    if isinstance(model, nn.Module):
        if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            raise ValueError(
                "the model is sharded: call fastht.save_adapter on every rank, then "
                "fastht.push_to_hub with its folder on one"
            )
        save_adapter(model, folder, base_model=base_model)
        saved = read_adapter(folder)
    else:
        saved = read_adapter(model)
    name = public_name(base_model or saved.base["name"])
    saved = replace(saved, base={**saved.base, "name": name})
    write_adapter(saved, folder)
    return saved


def _prepare(api: Any, address: Address, private: bool | None) -> Any:
    """Return what the Hub tells of the repository; make it if it is not there.

    Raises:
        HubError: it is public and was to be private.
        CheckpointError: it holds an adapter of another library.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    repository = address.repository
    try:
        head = api.model_info(repository, revision=address.revision)
    except RepositoryNotFoundError:
        if address.revision is not None:
            raise  # a new one has no such branch
        api.create_repo(repository, private=private is not False, exist_ok=True)
        return api.model_info(repository)
    if private and not head.private:
        raise HubError(
            f"{address} is public already; leave private=True out, or make it private on its page"
        )
    if _holds(head, CONFIG_NAME):
        config = api.hf_hub_download(repository, CONFIG_NAME, revision=head.sha)
        if (origin := origin_of(Path(config))) is not None:
            raise CheckpointError(
                f"{address} holds an adapter that is not fastht's: {origin}; use another "
                "repository, so that it is not lost"
            )
    return head


def _holds(head: Any, name: str) -> bool:
    return any(file.rfilename == name for file in head.siblings or ())


def _merged(api: Any, address: Address, card: str, head: Any) -> str | None:
    """Return the card to write, or nothing where the one that is there stays."""
    if not _holds(head, CARD_NAME):
        return card
    path = api.hf_hub_download(address.repository, CARD_NAME, revision=head.sha)
    merged = merge_cards(Path(path).read_text(encoding="utf-8"), card)
    if merged is None:
        warnings.warn(
            f"{address} has a {CARD_NAME} without fastht's marks, which is left as it is; delete "
            "it there to get one that is written from the adapter",
            stacklevel=4,
        )
    return merged


def _commit(api: Any, address: Address, contents: dict[str, Any], message: str, head: Any) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in contents.items()
    ]
    try:
        done = api.create_commit(
            address.repository,
            operations,
            commit_message=message,
            revision=address.revision,
            parent_commit=head.sha,  # what somebody else commits meanwhile is not written over
        )
    except RuntimeError as error:  # of the threads that upload
        raise HubError(
            f"{address}: the upload failed ({error.__cause__ or error}); try again"
        ) from error
    return str(done.oid)
