"""Before a backend is used: its features of a few pictures against plain transformers in float32.

The result is kept in the user's cache for these weights, this processor and these versions, so a
machine pays once. What exceeds the limit of its class is not used; where nothing was asked for by
name, the next candidate is tried and the user is told.
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.encoder.backends.choice import Choice
from dinoprobe.encoder.backends.graphs import Plan, build, key, made_by
from dinoprobe.errors import EncoderError, FormatError
from dinoprobe.files import WriteError, read_json, user_cache, write_json
from dinoprobe.pooling import parts_of
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from dinoprobe.encoder.backends.graphs import Built
    from dinoprobe.preprocess import Preprocessing

# 1 - cosine in the mean. Measured: 1e-12 and 3e-5; a wrong token gives 1e-3.
LIMITS = {"float32": 1e-6, "bfloat16": 1e-4}
_PICTURES = 4
_TEST_VERSION = 2


@dataclass(frozen=True, slots=True)
class Chosen:
    """What passed, with what was built for it, if it was; and sentences on what did not."""

    choice: Choice
    built: Built | None
    notes: tuple[str, ...]


@dataclass
class _Reference:
    """The pictures and plain transformers' features of them, computed when first asked for."""

    plan: Plan
    plain: Callable[[torch.Tensor], torch.Tensor]

    @cached_property
    def images(self) -> torch.Tensor:
        return pictures(self.plan.preprocessing)

    @cached_property
    def rows(self) -> torch.Tensor:
        return self.plain(self.images)


def first_sound(
    plan: Plan,
    choices: Sequence[Choice],
    plain: Callable[[torch.Tensor], torch.Tensor],
    *,
    asked: bool,
) -> Chosen:
    """The first choice within the limit of its class; `plain` is transformers' forward in float32.

    torch in float32 and int8 are taken without a test: parity tests hold the first, the head's
    agreement the second. `asked` says that the user named the choice. Raises EncoderError where
    nothing passes.
    """
    reference = _Reference(plan, plain)
    reasons: list[str] = []
    for choice in choices:
        if choice.precision not in LIMITS or choice == Choice("torch", "float32"):
            return Chosen(choice, None, tuple(reasons))
        built, distance = _distance(choice, reference, reasons)
        if distance is not None and distance <= LIMITS[choice.precision]:
            return Chosen(choice, built, tuple(reasons))
        if distance is not None:
            reasons.append(
                f"{choice.backend} in {choice.precision} is not used: 1 - cosine to plain float32 "
                f"is {distance:.1e} on test pictures, allowed {LIMITS[choice.precision]:.0e}."
            )
    way = "Leave --backend and --precision out" if asked else "Use --precision exact"
    raise EncoderError(f"{' '.join(reasons)} {way}.")


def _distance(
    choice: Choice, reference: _Reference, reasons: list[str]
) -> tuple[Built | None, float | None]:
    """1 - cosine in the mean, from the cache or measured; None where it can not run at all."""
    path = user_cache() / "selftests" / f"{_key(reference.plan, choice)}.json"
    with suppress(OSError, FormatError, KeyError, TypeError, ValueError):
        return None, float(read_json(path)["distance"])
    try:
        built = build(reference.plan, choice)
        rows = built(reference.images.to(_device(reference.plan)))
    except EncoderError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        reasons.append(f"{choice.backend} in {choice.precision} does not run here ({first}).")
        return None, None
    distance = mean_distance(rows, reference.rows, len(parts_of(reference.plan.pooling)))
    with suppress(WriteError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"backend": choice.backend, "precision": choice.precision,
                          "distance": min(distance, 2.0)})  # fmt: skip
    return built, distance


def mean_distance(rows: torch.Tensor, expected: torch.Tensor, parts: int = 1) -> float:
    """1 - cosine in the mean over rows, in float64; 2 where a number is not finite. Of rows of
    several parts of one width, the part that is farthest, for each may be used alone.
    """
    import torch

    A, B = (X.double().cpu().view(len(X), parts, -1) for X in (rows, expected))
    cosines = torch.nn.functional.cosine_similarity(A, B, dim=2, eps=1e-30)
    distance = (1 - cosines.mean(dim=0)).max()
    return float(distance) if bool(torch.isfinite(A).all() and torch.isfinite(distance)) else 2.0


def pictures(preprocessing: Preprocessing) -> torch.Tensor:
    """`(4, 3, height, width)` as `prepare` would give them: clouds of several sizes with noise."""
    import torch
    from torch.nn.functional import interpolate

    height, width = preprocessing.size
    generator = torch.Generator().manual_seed(0)
    total = torch.randn(_PICTURES, 3, height, width, generator=generator) * 12 + 110
    for cells, strength in ((3, 70.0), (9, 35.0), (31, 20.0)):
        field = torch.randn(_PICTURES, 3, cells, cells, generator=generator) * strength
        total += interpolate(field, (height, width), mode="bilinear", align_corners=False)
    images = total.clamp(0, 255).to(torch.uint8)
    return images.float() / 255 if preprocessing.arithmetic == "exact" else images


def _device(plan: Plan) -> torch.device:
    device: torch.device = next(plan.model.parameters()).device
    return device


def _key(plan: Plan, choice: Choice) -> str:
    described: dict[str, Any] = {
        "test": _TEST_VERSION,
        "choice": [choice.backend, choice.precision, choice.compiled],
        "device": str(_device(plan)),
        "processor": _processor(),
        "versions": versions(),
    }
    maker = json.dumps(described, sort_keys=True)
    return hashlib.sha256(f"{maker}{key(plan, made_by(choice))}".encode()).hexdigest()[:32]


@cache
def _processor() -> str:
    """Its name and flags, where Linux tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kept = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        return " ".join(sorted(kept))
    return platform.processor()
