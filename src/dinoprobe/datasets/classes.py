"""Whether the classes of two sides fit each other, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.datasets.names import amount, nearest, some
from dinoprobe.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_classes(
    train_labels: Iterable[str | None], test_labels: Iterable[str | None]
) -> tuple[str, ...]:
    """Notes on the classes that only the training side has.

    Raises DatasetError when the test side has a class that training never saw: no classifier can
    answer it, and its images would count as mistakes. None, an image without a label, is left out.
    """
    train = {label for label in train_labels if label is not None}
    test = {label for label in test_labels if label is not None}
    unknown = sorted(test - train)
    if unknown:
        raise DatasetError(_message(unknown, train))
    unseen = sorted(train - test) if test else []
    if not unseen:
        return ()
    return (f"{amount(len(unseen), 'class has', 'classes have')} no test image: {some(unseen)}.",)


def _message(unknown: list[str], train: set[str]) -> str:
    pairs = [(label, nearest(label, train)) for label in unknown[:5]]
    hints = "".join(f" '{label}' is close to '{close}'." for label, close in pairs if close)
    known = some(sorted(train)) if train else "none"
    return (
        f"The test images have {amount(len(unknown), 'class', 'classes')} without any training "
        f"image: {some(unknown)}. Expected one of the classes of training: {known}.{hints} Rename "
        "them, add training images, or leave those test images out."
    )
