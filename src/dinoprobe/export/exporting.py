"""`export`: load a classifier, write it in another form, and keep that only if it agrees.

In int8 it is kept if it is as accurate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe import __version__
from dinoprobe.classifier import ImageClassifier, classifier_folder
from dinoprobe.encoder import EncoderPlace
from dinoprobe.export.card import model_card
from dinoprobe.export.document import demands, describe, require_linear, write_licence
from dinoprobe.export.judging import gate_of
from dinoprobe.export.push import check, push
from dinoprobe.export.targets import EXACT, TYPES, target_named
from dinoprobe.files import write_atomic, write_json
from dinoprobe.run import check_out, new_export, run_of
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.export.push import Destination

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
    precision: str = EXACT,
    out: str | None = None,
    encoder: str | None = None,
    push_to: Destination | None = None,
    transfer: Transfer | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the classifier of `run` for another program, and its gate.json beside it.

    `to` is one of `TARGETS`, `precision` one of its own: exact (float32), fp16 or int8. With
    `push_to` the finished folder goes to the hub, too. Raises MismatchError where the file does not
    answer as the classifier does, or in int8 is less accurate: nothing is written then. Raises
    ConfigurationError for a head that is not one linear layer, and for int8 without labelled
    images, MissingExtraError, and what `push` and `ImageClassifier.load` raise.
    """
    start = time.perf_counter()
    repository = None if push_to is None else push_to.repository
    check_out(out)
    target = target_named(to)
    target.require_precision(precision)
    if push_to is not None:
        check(push_to, target.name)
    folder = classifier_folder(run).resolve()
    home = run_of(folder)
    place = EncoderPlace(encoder, device="cpu")
    classifier = ImageClassifier.load_at(folder, place, say=say, transfer=transfer)
    require_linear(classifier)
    gate = gate_of(target, classifier, home if home != folder else None, precision)
    name = target.name if precision == EXACT else f"{target.name}-{precision}"
    with new_export(out, home, folder, name) as staged:
        document = describe(classifier, TYPES[precision])
        written = target.write(classifier, document, staged.folder)
        if precision != EXACT:
            target.reduced[precision](written, classifier, gate.calibration())
        report = {
            "to": target.name,
            "precision": TYPES[precision],
            **gate.judged(target.opened(written)),
            "fingerprint": classifier.encoder.fingerprint,
            "trained_in": classifier.encoder.precision,
            "versions": versions(),
        }
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
    message = f"Image classifier as {name}, by dinoprobe {__version__}"
    pushed_to = push(staged.path, push_to, message)
    return Exported(path, staged.path, report, pushed_to)
