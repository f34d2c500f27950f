"""A head's probabilities for the class frequencies that a run is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.heads import apply_prior, class_prior, prior_shares, under_prior

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads import ProbeBase
    from dinoprobe.heads.base import Float64s


class Shift(NamedTuple):
    """From the class frequencies `(k,)` that a head was fitted for to others."""

    old: Float64s
    new: Float64s

    def apply(self, head: ProbeBase) -> None:
        """Make the head's probabilities those of the new frequencies."""
        apply_prior(head, self.old, self.new)

    def probabilities(self, found: Float64s) -> Float64s:
        """Probabilities `(n, k)` of the head before `apply`, as they are after it."""
        return under_prior(found, self.old, self.new)

    def back(self, found: Float64s) -> Float64s:
        """The inverse of `probabilities`."""
        return under_prior(found, self.new, self.old)

    def shares(self, head: ProbeBase) -> dict[str, float]:
        """The new frequencies by label."""
        labels = map(str, head.classes_)
        return dict(zip(labels, self.new.tolist(), strict=True))


def prior_shift(prior: Any, head: ProbeBase, y: npt.NDArray[Any]) -> Shift | None:
    """From the frequencies of a fitted head with labels `y` to `prior`; None without one.

    Raises HeadError for a prior that does not fit the classes.
    """
    if prior is None:
        return None
    return Shift(class_prior(head, y), prior_shares(prior, head.classes_))


def prior_in_words(prior: str | dict[str, float]) -> str:
    """The frequencies, for a sentence on how figures came about."""
    return "equally frequent classes" if isinstance(prior, str) else "given class frequencies"
