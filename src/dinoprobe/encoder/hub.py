"""Weights from the Hugging Face hub: only configuration and safetensors, pinned to a commit.

A refusal becomes one message that says which of the two steps (licence, token) is missing. No other
encoder is ever taken instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from dinoprobe.catalog import nearest_names
from dinoprobe.errors import AccessError, EncoderError, EncoderNotFoundError

CHECKPOINT_FILES = [
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
]


def download(hub_id: str, revision: str | None) -> tuple[Path, str]:
    """The folder of the snapshot in the hub's cache, and its commit.

    Uses the cache alone when HF_HUB_OFFLINE is set. Raises AccessError, EncoderNotFoundError or
    EncoderError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        found = snapshot_download(hub_id, revision=revision, allow_patterns=CHECKPOINT_FILES)
    except Exception as error:  # noqa: BLE001 - the hub's own tree of errors, mapped in one place
        _explain(hub_id, revision, error)
    folder = Path(str(found))
    return folder, folder.name


def _explain(hub_id: str, revision: str | None, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError: first
        raise AccessError(access_message(hub_id, _token_state())) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise EncoderNotFoundError(_no_repository(hub_id)) from error
    if isinstance(error, errors.RevisionNotFoundError):
        msg = f"{hub_id} has no revision '{revision}'. Give a commit, a tag or a branch of it."
        raise EncoderNotFoundError(msg) from error
    status = _status(error)
    if status in {401, 403}:
        raise AccessError(access_message(hub_id, _refusal(status))) from error
    raise EncoderError(_unreachable(hub_id, error)) from error


def _status(error: BaseException | None) -> int | None:
    """The hub's answer; a 403 without a code arrives as the cause of a "not in the cache"."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def _token_state() -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        return "token: not found"
    return "a token was found; its account has not accepted the licence, or waits for approval"


def _refusal(status: int) -> str:
    if status == 401:
        return "the token is invalid or has expired"
    return "the token lacks 'Read access to contents of all public gated repos you can access'"


def access_message(hub_id: str, state: str) -> str:
    """One screen: what is missing and what works meanwhile. `state` never holds a token."""
    return f"""{hub_id} is gated by its owner.
Two steps, about 2 minutes (approval may take longer):
  1. open  https://huggingface.co/{hub_id}  and accept the licence
  2. run   hf auth login        ({state})
Meanwhile:
  --encoder builtin             works now; for demos and tests only
  --encoder /path/to/folder     weights that you already have, in the transformers format"""


def _no_repository(hub_id: str) -> str:
    near = nearest_names(hub_id.rsplit("/", 1)[-1].removeprefix("dinov3-"))
    hint = f" Short names that look like it: {', '.join(near)}." if near else ""
    return f"{hub_id}: no such repository on the hub, or it is private to others.{hint}"


def _unreachable(hub_id: str, error: Exception) -> str:
    return (
        f"{hub_id}: the hub could not be reached and the cache does not hold it "
        f"({type(error).__name__}). Check the network (and HF_HUB_OFFLINE, HF_ENDPOINT), or give "
        "a folder that holds the weights."
    )
