"""The columns of a table of predictions, and rows as Arrow batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.files import valid_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.predicted.terms import Terms
    from dinoprobe.prediction import Prediction
    from dinoprobe.types import Failure

STATE_COLUMNS = ["key", "content_hash", "failure_kind", "failure_reason"]


class State(NamedTuple):
    """What a row stands for: the content that was scored, or the failure. Equal states need no new
    row.
    """

    content_hash: str | None
    failure_kind: str | None = None
    failure_reason: str | None = None


def schema(terms: Terms) -> Any:
    """Of a table by these terms; docs/json.md describes it."""
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    fields = [
        pa.field("key", pa.string(), nullable=False),
        ("content_hash", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("top_labels", texts),
        ("top_probabilities", numbers),
        ("labels", texts),
        ("abstained", pa.bool_()),
        ("novelty", pa.float64()),
        ("novel", pa.bool_()),
        ("failure_kind", pa.string()),
        ("failure_reason", pa.string()),
    ]
    if terms.all_probabilities:
        fields.append(("probabilities", numbers))
    return pa.schema(fields, metadata=terms.metadata())


def state_of(failure: Failure) -> State:
    """As the row of a failure says it."""
    return State(None, failure.kind, valid_text(failure.reason))


def scored_batch(
    classifier: ImageClassifier,
    terms: Terms,
    keys: Sequence[str],
    hashes: Sequence[str],
    X: npt.NDArray[np.float32],
) -> Any:
    """Rows of features `(n, d)` from the classifier's encoder."""
    probabilities = classifier.predict_features(X)
    scores = classifier.novelty_scores(X)
    found = classifier.rules.predictions(
        probabilities, scores, top_k=terms.top_k, abstain_below=terms.abstain_below
    )
    rows = [
        {"key": key, "content_hash": name} | _answer(prediction)
        for key, name, prediction in zip(keys, hashes, found, strict=True)
    ]
    if terms.all_probabilities:
        for row, values in zip(rows, probabilities, strict=True):
            row["probabilities"] = values.tolist()
    return _batch(rows, terms)


def failed_batch(failures: Iterable[Failure], terms: Terms) -> Any:
    """Rows of images that could not be used: no label, and why."""
    rows = [
        {"key": failure.key, "abstained": False, "novel": False, "top_labels": [],
         "top_probabilities": []} | state_of(failure)._asdict()
        for failure in failures
    ]  # fmt: skip
    return _batch(rows, terms)


def _answer(prediction: Prediction) -> dict[str, Any]:
    return {
        "label": valid_text(prediction.label),
        "probability": prediction.probability,
        "top_labels": [valid_text(score.label) for score in prediction.top],
        "top_probabilities": [score.probability for score in prediction.top],
        "labels": _texts(prediction.labels),
        "abstained": prediction.abstained,
        "novelty": prediction.novelty,
        "novel": prediction.novel,
    }


def _batch(rows: list[dict[str, Any]], terms: Terms) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=schema(terms))


def _texts(labels: Sequence[str] | None) -> list[str | None] | None:
    """None without sets, which an empty set is not."""
    return None if labels is None else [valid_text(label) for label in labels]
