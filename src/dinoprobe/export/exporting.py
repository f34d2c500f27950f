"""`export`: load a classifier, write it in another form, and keep that only if it agrees."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe import __version__
from dinoprobe.classifier import ImageClassifier, classifier_folder
from dinoprobe.encoder import EncoderPlace
from dinoprobe.export.card import model_card
from dinoprobe.export.document import demands, describe, require_linear, write_licence
from dinoprobe.export.gate import compare, require
from dinoprobe.export.pictures import pictures
from dinoprobe.export.push import check, push
from dinoprobe.export.targets import target_named
from dinoprobe.files import write_atomic, write_json
from dinoprobe.run import check_out, new_export, run_of
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.export.gate import Comparison
    from dinoprobe.export.pictures import Pictures
    from dinoprobe.export.push import Destination
    from dinoprobe.export.targets import Target

SCHEMA = "dinoprobe.export/1"
GATE_FILE, CARD_FILE = "gate.json", "README.md"


@dataclass(frozen=True, slots=True)
class Exported:
    """`path` is what to load, `folder` holds it with its gate.json, `report` is what that says.

    `pushed_to` is what `push` returns, None for an export that stayed here.
    """

    path: Path
    folder: Path
    report: dict[str, Any]
    pushed_to: dict[str, Any] | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The document of `--json`."""
        head = {"schema": SCHEMA, "path": str(self.path), "pushed_to": self.pushed_to}
        return {**head, **self.report}


def export(
    run: str | Path,
    to: str,
    *,
    out: str | None = None,
    encoder: str | None = None,
    push_to: Destination | None = None,
    transfer: Transfer | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the classifier of `run` for another program, and its gate.json beside it.

    `to` is one of `TARGETS`. With `push_to` the finished folder goes to the hub, too. Raises
    MismatchError where the file does not answer as the classifier does: nothing is written then.
    Raises ConfigurationError for a head that is not one linear layer, MissingExtraError, and what
    `push` and `ImageClassifier.load` raise.
    """
    start = time.perf_counter()
    repository = None if push_to is None else push_to.repository
    check_out(out)
    target = target_named(to)
    if push_to is not None:
        check(push_to, target.name)
    folder = classifier_folder(run).resolve()
    home = run_of(folder)
    place = EncoderPlace(encoder, device="cpu")
    classifier = ImageClassifier.load_at(folder, place, say=say, transfer=transfer)
    require_linear(classifier)
    shown = pictures(classifier, home if home != folder else None)
    with new_export(out, home, folder, target.name) as staged:
        document = describe(classifier)
        written = target.write(classifier, document, staged.folder)
        report = _judged(target, written, classifier, shown)
        card = model_card(classifier, document, report, repository)
        write_atomic(staged.folder / CARD_FILE, card)
        size = sum(path.stat().st_size for path in staged.folder.rglob("*") if path.is_file())
        report |= {"size_bytes": size, "seconds": round(time.perf_counter() - start, 3)}
        if target.has_weights:
            write_licence(classifier.encoder, staged.folder)
        write_json(staged.folder / GATE_FILE, report)
    path = staged.path / written.relative_to(staged.folder)
    if push_to is None:
        return Exported(path, staged.path, report)
    say(f"Uploading {size / 1e6:,.1f} MB to {push_to.repository}")
    if target.has_weights and document["licence"]["name"] == "dinov3-license":
        say(demands(staged.path))
    message = f"Image classifier as {target.name}, by dinoprobe {__version__}"
    pushed_to = push(staged.path, push_to, message)
    return Exported(path, staged.path, report, pushed_to)


def _judged(
    target: Target, written: Path, classifier: ImageClassifier, shown: Pictures
) -> dict[str, Any]:
    """The report of the gate. Raises MismatchError where it does not let the file through."""
    expected = classifier.predict_features(shown.features(classifier.encoder))
    decisive = compare(shown.keys, expected, target.answers(written, classifier, shown))
    require(target.name, decisive, len(shown))
    told = target.told(written, shown) if target.told else {}
    return {
        "to": target.name,
        "images": len(shown),
        "images_are": shown.described,
        "max_probability_difference": max(c.max_probability_difference for c in decisive),
        "top1_agreement": min(c.top1_agreement for c in decisive),
        "ways": _by_way(decisive),
        "reported_only": _by_way(compare(shown.keys, expected, told)),
        "fingerprint": classifier.encoder.fingerprint,
        "trained_in": classifier.encoder.precision,
        "versions": versions(),
    }


def _by_way(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [found.to_dict() for found in comparisons]
