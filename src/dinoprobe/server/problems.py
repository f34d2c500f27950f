"""What a client is told when there is no answer: a status, a word to count by, and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import DinoprobeError

if TYPE_CHECKING:
    from dinoprobe.errors import ImageError

SCHEMA = "dinoprobe.http-error/1"
_OF_IMAGES = {"not-an-image": 415, "unsupported-format": 415, "too-large": 413}


@final
class ProblemError(DinoprobeError):
    """A request that is refused, or can not be answered now.

    `reason` is one of few words; `retry_after_s` says when to come again, whole seconds.
    """

    def __init__(
        self, status: int, reason: str, message: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return _problem, (self.status, self.reason, str(self), self.retry_after_s)

    def document(self, request_id: str) -> dict[str, Any]:
        """The JSON body. `error` is a sentence, as the Open Inference Protocol has it."""
        return {
            "schema": SCHEMA,
            "error": str(self),
            "reason": self.reason,
            "retry_after_s": self.retry_after_s,
            "request_id": request_id,
        }

    def headers(self) -> dict[str, str]:
        """`Retry-After`, and how to log in."""
        found = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def _problem(status: int, reason: str, message: str, retry_after_s: int | None) -> ProblemError:
    return ProblemError(status, reason, message, retry_after_s=retry_after_s)


def status_of(kind: str) -> int:
    """The status for an image that could not be used, by the kind of its failure."""
    return _OF_IMAGES.get(kind, 422)


def of_image(error: ImageError) -> ProblemError:
    """The answer where the one image that was sent can not be used."""
    return ProblemError(status_of(error.kind), error.kind, str(error))


def overloaded(message: str, reason: str, retry_after_s: int = 1) -> ProblemError:
    """503: the service is whole, and can not take this request now."""
    return ProblemError(503, reason, message, retry_after_s=retry_after_s)
