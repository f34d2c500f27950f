"""What the hub answers when it does not give: one state each, and one message each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dinoprobe.catalog import by_hub_id, is_dinov3_licensed, nearest_names
from dinoprobe.errors import (
    AccessError,
    EncoderError,
    EncoderNotFoundError,
    HubUnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

State = Literal[
    "no-token",
    "not-accepted",
    "pending",
    "rejected",
    "invalid-token",
    "token-scope",
    "not-found",
    "no-revision",
    "busy",
    "broken-off",
    "offline",
    "unreachable",
]
_ACCESS_LINES = {
    "no-token": "token: not found",
    "not-accepted": "token found{account}; its account has not accepted the licence",
    "pending": "token found{account}; the request waits for the owner's review",
    "rejected": "token found{account}; the owner has rejected the request",
    "invalid-token": "the token is invalid or has expired: make a new one",
    "token-scope": "fine-grained token{account}: tick 'Read access to contents of all public gated "
    "repos you can access'",
}
_HUB = "https://huggingface.co"
_BUSY = frozenset({408, 425, 429})
_HEADINGS = {
    "pending": "They were asked for, and are not given yet:",
    "rejected": "They were asked for, and the owner has refused:",
}
_FIRST_STEPS = {
    "pending": f"wait  the request is sent; how far it is: {_HUB}/settings/gated-repos",
    "rejected": "ask   its owner: {page}/discussions",
    "invalid-token": f"open  {_HUB}/settings/tokens  and make a new token (type: read)",
}
_SECOND_STEPS = {
    "no-token": "run   hf auth login        ({line})",
    "invalid-token": "run   hf auth login{instead}",
    "token-scope": f"edit  {_HUB}/settings/tokens\n           ({{line}})",
}


class RefusedError(Exception):
    """The hub, or the way to it, said no. `detail` is for the message and holds no token.

    `wait_s` is how long the hub asks to wait.
    """

    def __init__(self, state: State, detail: str = "", *, wait_s: int | None = None) -> None:
        super().__init__(state, detail)
        self.state = state
        self.detail = detail
        self.wait_s = wait_s


def state_of(status: int, headers: Mapping[str, str], text: str, *, has_token: bool) -> State:
    """Which refusal an answer is: by the hub's error code, its words, then the status.

    A repository that is not there answers 401 to someone without a token, as a private one does.
    """
    code = headers.get("x-error-code", "")
    words = f"{headers.get('x-error-message', '')} {text}".lower()
    if code == "RevisionNotFound":
        return "no-revision"
    if code == "GatedRepo":
        return _gated(words, has_token=has_token)
    if status >= 500 or status in _BUSY:
        return "busy"
    if "html" in headers.get("content-type", "") and not code:
        return "unreachable"  # a proxy's page: the hub names its errors, in plain text or JSON
    return _by_status(status, code, has_token=has_token)


def _by_status(status: int, code: str, *, has_token: bool) -> State:
    if status == 401 and has_token and code != "RepoNotFound":
        return "invalid-token"
    if status in {401, 404}:
        return "not-found"
    return "token-scope" if status == 403 and has_token else "unreachable"


def _gated(words: str, *, has_token: bool) -> State:
    if not has_token:
        return "no-token"
    if "awaiting a review" in words:
        return "pending"
    return "rejected" if "has been rejected" in words else "not-accepted"


def to_error(
    refused: RefusedError,
    hub_id: str,
    revision: str | None,
    user: str | None = None,
    place: str | None = None,
) -> EncoderError:
    """The error for a user: class, exit code and message by state.

    `user` is the account of the token, `place` where the token was found.
    """
    state = refused.state
    if state in _ACCESS_LINES:
        return AccessError(access_message(hub_id, refused, user, place))
    if state == "not-found":
        return EncoderNotFoundError(_no_repository(hub_id))
    if state == "no-revision":
        msg = f"{hub_id} has no revision '{revision}'. Give a commit, a tag or a branch of it."
        return EncoderNotFoundError(msg)
    return HubUnreachableError(_unreachable(hub_id, refused))


def sentence(refused: RefusedError, hub_id: str, user: str | None = None) -> str:
    """One line on the state, for a table."""
    if refused.state in _ACCESS_LINES:
        return f"refused: {_access_line(refused, user)}"
    if refused.state == "no-revision":
        return f"{hub_id} has no such revision"
    if refused.state == "not-found":
        return f"{hub_id}: no such repository, or private to others"
    if refused.state == "offline":
        return "HF_HUB_OFFLINE keeps the hub out"
    if refused.state == "unreachable":
        return f"the hub could not be reached ({refused.detail})"
    return _unreachable(hub_id, refused).split(". ")[0]


def _access_line(refused: RefusedError, user: str | None) -> str:
    """The state in words; where the hub's own sentence does not decide, both are said."""
    line = _ACCESS_LINES[refused.state].format(account=f" (account {user})" if user else "")
    if refused.state != "not-accepted" or "authorized list" in refused.detail:
        return line
    if "has been reset" in refused.detail:
        return f"{line}: the owner has reset the request, send it again"
    return f"{line}, or waits for approval"


def access_message(
    hub_id: str, refused: RefusedError, user: str | None = None, place: str | None = None
) -> str:
    """One screen: what is missing and what works meanwhile. Never holds a token."""
    checkpoint = by_hub_id(hub_id)
    by_meta = hub_id.startswith("facebook/") and is_dinov3_licensed(hub_id)
    lines = [
        *_heading(hub_id, refused, by_meta=by_meta, place=place),
        *_steps(hub_id, refused, user, place),
        "Meanwhile:",
        f"  {'--encoder builtin':<34} works now; for demos and tests only",
    ]
    takes_token = refused.state != "invalid-token"  # the hub refuses it for open weights, too
    if takes_token and checkpoint is not None and checkpoint.timm and by_meta:
        copy = f"--encoder timm:{checkpoint.name}"
        lines.append(f"  {copy:<34} the same weights from timm, without a gate; the DINOv3 licence")
        lines.append(f"  {'':<34} still binds you")
    if takes_token:
        lines.append(f"  {'--encoder dinov2-small':<34} Apache-2.0, no gate")
    lines += [
        f"  {'--encoder /path/to/folder':<34} weights that you already have; or a file of Meta's,",
        f"  {'':<34} after dinoprobe pull FILE.pth",
    ]
    return "\n".join(lines)


def _heading(hub_id: str, refused: RefusedError, *, by_meta: bool, place: str | None) -> list[str]:
    if refused.state == "invalid-token":
        where = f" in {place}" if place else ""
        first = f"{hub_id}: the token{where} is invalid or has expired ({refused.detail})."
        return [first, "Two steps:"]
    owner = "Meta" if by_meta else "its owner"
    what = _HEADINGS.get(refused.state, "Two steps, about 2 minutes (approval may take longer):")
    return [f"{hub_id}: these weights are gated by {owner}.", what]


def _steps(hub_id: str, refused: RefusedError, user: str | None, place: str | None) -> list[str]:
    """What is left to do, as two lines; for weights without a gate a third way."""
    page, state = f"{_HUB}/{hub_id}", refused.state
    variable = place if place and not Path(place).is_absolute() else None
    instead = f", after unset {variable} (it goes before the login)" if variable else ""
    values = {"page": page, "line": _access_line(refused, user), "instead": instead}
    first = _FIRST_STEPS.get(state, "open  {page}  and accept the licence").format(**values)
    done = "done  hf auth login\n           ({line})"
    lines = [f"  1. {first}", f"  2. {_SECOND_STEPS.get(state, done).format(**values)}"]
    known = by_hub_id(hub_id)
    if state == "invalid-token" and (hub_id.startswith("timm/") or (known and not known.gated)):
        without = f"unset {variable}" if variable else "hf auth logout"
        lines.append(f"Or without a token, for these weights need none: {without}")
    return lines


def _no_repository(hub_id: str) -> str:
    near = nearest_names(hub_id.rsplit("/", 1)[-1].removeprefix("dinov3-"))
    hint = f" Short names that look like it: {', '.join(near)}." if near else ""
    return f"{hub_id}: no such repository on the hub, or it is private to others.{hint}"


def _unreachable(hub_id: str, refused: RefusedError) -> str:
    if refused.state == "offline":
        return (
            f"{hub_id}: the cache does not hold it, and HF_HUB_OFFLINE keeps the hub out. Unset "
            "HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE) to fetch it, or give a folder that holds "
            "the weights."
        )
    if refused.state == "broken-off":
        kept = "What has arrived is kept: the same command goes on from there."
        return f"{hub_id}: {refused.detail}. {kept}"
    if refused.state == "busy":
        return f"{hub_id}: the hub could not answer ({refused.detail}). Try again later."
    return (
        f"{hub_id}: the hub could not be reached and the cache does not hold it "
        f"({refused.detail}). Check the network, a proxy and HF_ENDPOINT, or give a folder that "
        "holds the weights."
    )
