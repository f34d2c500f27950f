"""A finished export to a repository on the Hugging Face hub, in one commit, and only when asked.

By huggingface_hub's `create_commit`: its `upload_folder` splits a folder into several commits. A
repository is private unless it is asked to be public, and one that is public already gets nothing
without that word. What lies in the repository and not in the export stays.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dinoprobe.encoder.hub import client
from dinoprobe.errors import AccessError, ConfigurationError, HubUnreachableError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUSHABLE = ("transformers", "timm", "onnx", "head")
_NO_ACCESS = frozenset({401, 402, 403})
_BUSY = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Destination:
    """`repository` is OWNER/NAME; `revision` a branch, made where it is not there yet."""

    repository: str
    private: bool = True
    revision: str | None = None


def check(destination: Destination, to: str) -> None:
    """What can be known before any work: the form, the name, the token and the way to the hub.

    Raises ConfigurationError, AccessError without a valid token, HubUnreachableError.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    repository = destination.repository
    if to not in PUSHABLE:
        msg = f"--to {to} is not pushed; expected one of {', '.join(PUSHABLE)}. Use hf upload."
        raise ConfigurationError(msg)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        msg = f"--push-to-hub {repository!r}: no name of a repository ({error}). Give OWNER/NAME."
        raise ConfigurationError(msg) from error
    if "/" not in repository:
        msg = f"--push-to-hub {repository}: no owner. Give OWNER/{repository}."
        raise ConfigurationError(msg)
    if client.is_offline():
        msg = f"{repository}: HF_HUB_OFFLINE keeps the hub out. Unset it, or leave --push-to-hub."
        raise HubUnreachableError(msg)
    if client.token() is None:
        msg = (
            f"{repository}: no token was found, expected one that may write. Run hf auth login, or "
            "set HF_TOKEN. Nothing was uploaded."
        )
        raise AccessError(msg)
    try:
        _api().whoami()
    except Exception as error:  # noqa: BLE001 - of huggingface_hub or of the library that it uses
        _refuse(error, destination, "Nothing was uploaded.")


def push(folder: Path, destination: Destination, message: str) -> dict[str, Any]:
    """Upload every file of `folder`: `repository`, `url`, `commit`, `revision` and `private`.

    Raises AccessError, HubUnreachableError, MismatchError where the repository is public and that
    was not asked for.
    """
    kept = f"The export is whole in {folder}; nothing was committed."
    try:
        return _pushed(folder, destination, message, kept)
    except MismatchError:
        raise
    except Exception as error:  # noqa: BLE001
        _refuse(error, destination, kept)


def _pushed(folder: Path, destination: Destination, message: str, kept: str) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd

    api, repository = _api(), destination.repository
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    api.create_repo(repository, private=destination.private, exist_ok=True)
    is_private = bool(api.repo_info(repository).private)
    if destination.private and not is_private:
        msg = f"{repository} is public, expected a private repository. Say --public. {kept}"
        raise MismatchError(msg)
    if destination.revision is not None:
        api.create_branch(repository, branch=destination.revision, exist_ok=True)
    with _quietly():
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files],
            commit_message=message,
            revision=destination.revision,
        )
    return {
        "repository": repository,
        "url": f"{client.endpoint()}/{repository}",
        "commit": commit.oid,
        "revision": destination.revision or "main",
        "private": is_private,
    }


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=client.endpoint(), token=client.token(), library_name="dinoprobe")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without huggingface_hub's bars, for a sentence says what is uploaded, and without warnings
    that are for those who write it.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_shown = not are_progress_bars_disabled()
    if were_shown:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if were_shown:
            enable_progress_bars()


def _refuse(error: Exception, destination: Destination, kept: str) -> NoReturn:
    """Raise the error of this package that says what happened; a bug is raised as it is."""
    repository, error = destination.repository, _cause(error)
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        if isinstance(error, ValueError):  # a card or a file that the hub does not take
            msg = f"{repository}: the hub refused ({client.reason(error)}). Report this. {kept}"
            raise ConfigurationError(msg) from error
        if not client.is_transport_error(error) and not isinstance(error, OSError):
            raise error
        msg = (
            f"{repository}: {client.endpoint()} can not be reached ({client.reason(error)}). Check "
            f"the network, a proxy and HF_ENDPOINT. {kept}"
        )
        raise HubUnreachableError(msg) from error
    said = client.scrub(str(getattr(error, "server_message", None) or ""))
    detail = f"status {status}" + (f": {said}" if said else "")
    if status in _NO_ACCESS:
        raise AccessError(f"{_access(repository, status, detail)} {kept}") from error
    if status in _BUSY or status >= 500:
        msg = f"{repository}: the hub could not answer ({detail}). Try again later. {kept}"
        raise HubUnreachableError(msg) from error
    changed = status in {409, 412}
    advice = "Somebody else changed it: push again." if changed else "Check its name and revision."
    msg = f"{repository}: the hub refused ({detail}). {advice} {kept}"
    raise ConfigurationError(msg) from error


def _cause(error: Exception) -> Exception:
    """What lies behind huggingface_hub's RuntimeError for a file that did not go through."""
    cause = error.__cause__
    return cause if type(error) is RuntimeError and isinstance(cause, Exception) else error


def _access(repository: str, status: int, detail: str) -> str:
    where = client.token_place() or "use"
    if status == 401:
        return (
            f"{repository}: the token in {where} is invalid or has expired ({detail}). Make a new "
            "one that may write, at https://huggingface.co/settings/tokens."
        )
    return (
        f"{repository}: the token in {where} may not write there ({detail}). Expected one with "
        f"write access, of a member of '{repository.partition('/')[0]}'."
    )
