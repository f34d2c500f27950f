"""What the service may be told, and its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dinoprobe.errors import ConfigurationError

MIB = 1 << 20
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where to listen, and how much is too much.

    Every limit is checked before memory is taken for what is limited. `max_pending` counts images
    that are admitted and not answered, 0 for as many as three full batches of each lane.
    `max_pixels` are of one image, as its header says. `max_buffered_bytes` are the bodies of all
    requests together, while they arrive and until they are answered. More than `max_stuck` threads
    that decode one image for longer than `decode_timeout_s` make the service not ready, and end it
    with `exit_when_stuck`. Raises ConfigurationError.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    model_name: str = "classifier"
    max_body_bytes: int = 32 * MIB
    max_buffered_bytes: int = 256 * MIB
    max_pixels: int = 50_000_000
    max_images: int = 64
    max_pending: int = 0
    max_connections: int = 1024
    deadline_s: float = 10.0
    decode_timeout_s: float = 5.0
    max_stuck: int = 4
    exit_when_stuck: bool = False
    body_timeout_s: float = 10.0
    head_timeout_s: float = 5.0
    drain_s: float = 0.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_pixels", "max_images", "max_connections"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("deadline_s", "decode_timeout_s", "body_timeout_s", "head_timeout_s"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "more than 0 seconds")
        for name in ("drain_s", "grace_s", "max_pending", "max_stuck"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        enough = self.max_buffered_bytes >= self.max_body_bytes
        _check("max_buffered_bytes", self.max_buffered_bytes, enough, "room for one body")
        _check("port", self.port, 0 <= self.port <= 65535, "0 to 65535")
        _check("token", "an empty text", self.token != "", "a text, or none at all")
        fits = _MODEL_NAME.fullmatch(self.model_name) is not None
        _check("model_name", self.model_name, fits, "letters, digits, '.', '_' and '-'")


def _check(name: str, value: object, holds: bool, expected: str) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigurationError(f"{name} is {value!r}; expected {expected}. Change it.")
