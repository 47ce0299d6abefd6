"""Adapters from the Hub: two files, fetched into huggingface_hub's cache."""

from __future__ import annotations

import os
import warnings
from pathlib import Path, PurePath
from typing import Any

from fastht.hub.access import (
    SCHEME,
    Address,
    UnreachableError,
    client,
    is_offline,
    parse_address,
    told,
)
from fastht.saved import CONFIG_NAME, WEIGHTS_NAME


def address_in(path: str | os.PathLike[str]) -> str | None:
    """Return the address of the Hub that a path is; ``None`` for a folder.

    A ``Path``, as options of commands are, has lost the second slash of ``hf://``.
    """
    text = os.fspath(path)
    if text.startswith(SCHEME):
        return text
    scheme = SCHEME.removesuffix("/")
    if isinstance(path, PurePath) and path.as_posix().startswith(scheme):
        return SCHEME + path.as_posix().removeprefix(scheme)
    return None


def fetch_adapter(text: str) -> tuple[Path, Address]:
    """Fetch an adapter's two files and nothing else, unless the cache has them.

    A commit that the cache holds is taken from there without asking. Of a branch or a tag the Hub
    is asked what it stands for; where it does not answer, the cache's is taken, with a warning,
    and with ``HF_HUB_OFFLINE`` set without one.

    Returns:
        The folder, which holds files of one commit, and the address with that commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: the address is none.
        HubError: the repository or the revision is not there, or not in the cache either.
    """
    address = parse_address(text)
    api = client()
    silent: UnreachableError | None = None
    if not is_offline() and not address.is_commit:
        try:
            with told(address, api):
                _ask(api, address)
        except UnreachableError as error:
            silent = error
    try:
        folder = _files(api, address, cached=is_offline() or silent is not None)
    except UnreachableError:
        if silent is None:
            raise
        raise silent from None
    found = Address(address.repository, folder.name)
    if silent is not None:
        warnings.warn(
            f"{silent}. Taken from the cache: {found}, which may not be the latest", stacklevel=3
        )
    return folder, found


def _ask(api: Any, address: Address) -> None:
    """Ask for the config, since a download would turn to the cache without a word."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(
        address.repository, CONFIG_NAME, revision=address.revision, endpoint=api.endpoint
    )
    api.get_hf_file_metadata(url=url)


def _files(api: Any, address: Address, cached: bool) -> Path:
    folder, revision = Path(), address.revision
    with told(address, api):
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            path = api.hf_hub_download(
                address.repository, name, revision=revision, local_files_only=cached
            )
            folder = Path(path).parent
            revision = folder.name  # the weights are to be of the config's commit
    return folder
