"""Each refusal becomes one state and one message, which is read here as a user reads it."""

from __future__ import annotations

import pickle

import pytest
from tests.fakehub import _REASONS as SENTENCES

from dinoprobe.encoder.hub.refusal import RefusedError, state_of, to_error
from dinoprobe.errors import AccessError, EncoderNotFoundError, HubUnreachableError

VITS16 = "facebook/dinov3-vits16-pretrain-lvd1689m"
GATED = {"x-error-code": "GatedRepo"}
INVALID = {"x-error-message": "Invalid credentials in Authorization header"}
PENDING_NAME = "Access to model someone/pending-rejected is restricted"


@pytest.mark.parametrize(
    ("status", "headers", "text", "has_token", "state"),
    [
        (401, GATED, SENTENCES["no-token"], False, "no-token"),
        (403, GATED, SENTENCES["not-accepted"], True, "not-accepted"),
        (403, GATED, SENTENCES["pending"], True, "pending"),
        (403, GATED, SENTENCES["rejected"], True, "rejected"),
        (403, GATED, "a sentence that is new", True, "not-accepted"),
        (403, GATED, PENDING_NAME, True, "not-accepted"),
        (401, INVALID, "", True, "invalid-token"),
        (401, {}, "", True, "invalid-token"),
        (401, {}, "Invalid username or password.", False, "not-found"),
        (401, {"x-error-code": "RepoNotFound"}, "", True, "not-found"),
        (404, {"x-error-code": "RepoNotFound"}, "", True, "not-found"),
        (404, {"x-error-code": "RevisionNotFound"}, "", False, "no-revision"),
        (403, {}, SENTENCES["token-scope"], True, "token-scope"),
        (403, {}, "", False, "unreachable"),
        (403, {"content-type": "text/html"}, "<html>", True, "unreachable"),
        (408, {}, "", False, "busy"),
        (429, {}, "", True, "busy"),
        (504, {"content-type": "text/html"}, "", True, "busy"),
        (418, {}, "", True, "unreachable"),
    ],
)
def test_which_refusal_an_answer_is(
    status: int, headers: dict[str, str], text: str, has_token: bool, state: str
) -> None:
    assert state_of(status, headers, text, has_token=has_token) == state


def message(state: str, hub_id: str = VITS16, detail: str = "", place: str = "HF_TOKEN") -> str:
    refused = RefusedError(state, detail)  # type: ignore[arg-type]
    found = to_error(refused, hub_id, "v9", "ada", place)
    assert type(found) is AccessError
    assert found.exit_code == 3
    return str(found)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("no-token", ["accept the licence", "run   hf auth login        (token: not found)"]),
        ("not-accepted", ["accept the licence", "account ada", "or waits for approval"]),
        ("pending", ["settings/gated-repos", "account ada", "waits for the owner's review"]),
        ("rejected", [f"{VITS16}/discussions", "account ada", "has rejected the request"]),
        ("token-scope", ["settings/tokens", "account ada", "'Read access to contents of all"]),
        ("invalid-token", ["token in HF_TOKEN is invalid or has expired", "settings/tokens"]),
    ],
)
def test_each_state_says_which_step_is_left(state: str, says: list[str]) -> None:
    text = message(state)
    for words in (VITS16, *says, "Meanwhile:", "--encoder builtin"):
        assert words in text
    lines = text.splitlines()
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 120


def test_open_weights_are_no_way_round_a_token_that_does_not_hold() -> None:
    assert "--encoder timm:vits16" in message("no-token")
    for name in ("timm:", "dinov2-small"):
        assert name not in message("invalid-token")


def test_a_request_that_is_sent_is_not_to_be_sent_again() -> None:
    for state in ("pending", "rejected"):
        assert "accept the licence" not in message(state)


def test_the_hubs_own_sentence_decides_what_is_missing() -> None:
    never = message("not-accepted", detail="status 403: you are not in the authorized list.")
    assert "or waits for approval" not in never
    again = message("not-accepted", detail="Your request has been reset by the repo's authors.")
    assert "send it again" in again


@pytest.mark.parametrize(
    ("hub_id", "place", "says", "not_says"),
    [
        (VITS16, "HF_TOKEN", "after unset HF_TOKEN", "without a token"),
        (VITS16, "/home/ada/.cache/huggingface/token", "run   hf auth login", "unset"),
        ("facebook/dinov2-small", "HF_TOKEN", "need none: unset HF_TOKEN", "gated by"),
        ("facebook/dinov2-small", "/home/ada/token", "need none: hf auth logout", "unset"),
        ("timm/vit_small_patch16_dinov3.lvd1689m", "HF_TOKEN", "need none", "accept the licence"),
    ],
)
def test_a_token_that_does_not_hold_is_replaced_or_left_out(
    hub_id: str, place: str, says: str, not_says: str
) -> None:
    text = message("invalid-token", hub_id, place=place)
    assert says in text
    assert not_says not in text


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("not-found", EncoderNotFoundError, "no such repository"),
        ("no-revision", EncoderNotFoundError, "has no revision 'v9'"),
        ("busy", HubUnreachableError, "Try again later"),
        ("broken-off", HubUnreachableError, "the same command goes on from there"),
        ("offline", HubUnreachableError, "HF_HUB_OFFLINE keeps the hub out"),
        ("unreachable", HubUnreachableError, "Check the network"),
    ],
)
def test_other_states_have_their_own_class(state: str, error: type[Exception], says: str) -> None:
    refused = RefusedError(state, "the detail")  # type: ignore[arg-type]
    found = to_error(refused, VITS16, "v9")
    assert type(found) is error
    assert says in str(found)
    copy = pickle.loads(pickle.dumps(found))
    assert (type(copy), str(copy)) == (error, str(found))
