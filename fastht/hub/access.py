"""What reading from the Hub and writing to it share: addresses, the client, and its errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastht.version import __version__

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[^\s@:~^?*\\\[]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORM = "give hf://ORG/REPO or hf://ORG/REPO@REVISION"


class HubError(OSError):
    """A repository of the Hugging Face Hub cannot be read or written."""


class UnreachableError(HubError):
    """The Hub does not answer, and the cache does not hold what it was asked for."""


@dataclass(frozen=True)
class Address:
    """A repository of models, and one of its revisions.

    Attributes:
        repository: as ``"ORG/REPO"``.
        revision: a branch, a tag or a commit; ``None``: the main branch.
    """

    repository: str
    revision: str | None = None

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit's full hash, which stands for one content for ever."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def parse_address(text: str) -> Address:
    """Read an address such as ``hf://ORG/REPO@v1``.

    Raises:
        ValueError: it has another form.
    """
    repository, at, revision = text.removeprefix(SCHEME).partition("@")
    if not text.startswith(SCHEME) or bool(at) != bool(revision):
        raise ValueError(f"{text!r} is no address of the Hub; {_FORM}")
    check_names(repository, revision or None)
    return Address(repository, revision or None)


def check_names(repository: str, revision: str | None) -> None:
    """Raise ``ValueError`` unless a repository and a revision can be names of such."""
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"{repository!r} is no repository of the Hub's; {_FORM}")
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ValueError(f"{revision!r} is no branch, tag or commit of the Hub's; {_FORM}")


def client(token: str | bool | None = None) -> Any:
    """Return huggingface_hub's client, for the endpoint that ``HF_ENDPOINT`` names.

    Args:
        token: as huggingface_hub takes it; ``None``: the one of the login or of ``HF_TOKEN``.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "addresses of the Hugging Face Hub need huggingface_hub: pip install 'fastht[hub]'"
        ) from error
    return HfApi(token=token, library_name="fastht", library_version=__version__)


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` keeps huggingface_hub from the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def told(address: Address, api: Any) -> Iterator[None]:
    """Turn huggingface_hub's errors into one line each, without headers, and so without tokens.

    Raises:
        UnreachableError: the Hub does not answer.
        HubError: it refuses.
    """
    from huggingface_hub import errors

    answered = errors.HfHubHTTPError
    # What it has in common with the errors of its HTTP client, whichever that is in this release.
    transport: tuple[Any, ...] = tuple(
        kind for kind in answered.__mro__[1:] if kind.__module__ != "builtins"
    )
    try:
        yield
    except HubError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(
            f"{address}: its owners let in those who asked; ask on the page of the repository, "
            "then log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{address}: there is no such repository, or it is private and not yours to see; check "
            "the name, or log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{address}: the repository has no such branch, tag or commit; check the revision"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise HubError(
            f"{address}: the repository holds no adapter of fastht; check its list of files"
        ) from error
    except answered as error:
        raise HubError(f"{address}: {_answer(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UnreachableError(
            f"{address} is not in the cache, and HF_HUB_OFFLINE is set; load it once without that, "
            "or copy the cache of a machine that has it"
            if is_offline()
            else _silent(address, api, error.__cause__ or error)
        ) from error
    except (*transport, ConnectionError, TimeoutError) as error:
        raise UnreachableError(_silent(address, api, error)) from error


def _silent(address: Address, api: Any, error: BaseException) -> str:
    return (
        f"{address}: {api.endpoint} does not answer ({type(error).__name__}); check the network, "
        "or HF_ENDPOINT"
    )


def _answer(error: Any) -> str:
    status = getattr(error.response, "status_code", None)
    said = (getattr(error, "server_message", None) or "").strip().partition("\n")[0]
    words = f"the Hub answered {status}" + (f" ({said})" if said else "")
    if status in (401, 403):
        return f"{words}; log in with a token that may write there (`hf auth login`, or HF_TOKEN)"
    if status in (409, 412):
        return f"{words}: somebody else has changed the repository meanwhile; try again"
    return f"{words}; try again later"
