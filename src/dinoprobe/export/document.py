"""What an export says of itself: one JSON document, in a file's metadata or beside it.

A program without torch finds everything in it that `predict` would use: classes, preprocessing,
thresholds of prediction sets, of novelty and of abstention. docs/exports.md describes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe import __version__
from dinoprobe.catalog import BUILTIN_NAMES, is_dinov3_licensed
from dinoprobe.errors import ConfigurationError
from dinoprobe.files import write_atomic
from dinoprobe.heads import MultiLabelProbe
from dinoprobe.heads.base import LinearBase
from dinoprobe.report.card import DINOV3_LICENSE

if TYPE_CHECKING:
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.encoder import Encoder

FORMAT = "dinoprobe-export"
FORMAT_VERSION = 1
NOTICE = """\
The weights in this folder come from DINOv3, and the DINOv3 License binds whoever uses them or
passes them on: {link}
A copy of that agreement must go with them, uses that it excludes stay excluded, and published
research that used them must say so. Of dinoprobe itself (Apache-2.0) there is no code in here.
"""


def require_linear(classifier: ImageClassifier) -> None:
    """Raise ConfigurationError for a head that is more than one linear layer."""
    if isinstance(classifier.head, LinearBase | MultiLabelProbe):
        return
    found = type(classifier.head).__name__
    msg = (
        f"the head is a {found}, which needs its training rows or all patch tokens; only heads of "
        "one linear layer are exported. Train with --head logistic, lda, ridge or prototype, or "
        "serve the run itself: dinoprobe serve RUN."
    )
    raise ConfigurationError(msg)


def describe(classifier: ImageClassifier, precision: str = "float32") -> dict[str, Any]:
    """The document of an export in `precision`, as JSON values."""
    encoder, head = classifier.encoder, classifier.head
    thresholds = head.thresholds_.tolist() if isinstance(head, MultiLabelProbe) else None
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dinoprobe_version": __version__,
        "classes": list(classifier.classes),
        "multilabel": thresholds is not None,
        "thresholds": thresholds,
        "preprocessing": encoder.preprocessing.to_dict(),
        "pooling": encoder.pooling,
        "dimension": encoder.dimension,
        "precision": precision,
        "trained_in": encoder.precision,
        "fingerprint": encoder.fingerprint,
        "encoder": {
            "name": _name(encoder),
            "commit": encoder.reference.commit,
            "model_type": encoder.model_type,
            "weights_digest": encoder.weights_digest,
        },
        "sets": classifier.sets and classifier.sets.to_dict(),
        "novelty": classifier.novelty and classifier.novelty.to_dict(),
        "abstention": classifier.abstention and classifier.abstention.to_dict(),
        "licence": licence_of(encoder),
    }


def _name(encoder: Encoder) -> str:
    """What the encoder is called; of a local folder or file its last part, for exports travel."""
    name = encoder.reference.name
    return Path(name).name if Path(name).is_absolute() else name


def licence_of(encoder: Encoder) -> dict[str, str | None]:
    """`name` and `link` of the licence that the encoder's weights are under; null if unknown.

    Weights of DINOv3's architecture count as Meta's wherever they came from, but for this
    package's own.
    """
    reference = encoder.reference
    if reference.name in BUILTIN_NAMES:
        return {"name": "apache-2.0", "link": "https://www.apache.org/licenses/LICENSE-2.0"}
    if encoder.model_type.startswith("dinov3") or is_dinov3_licensed(reference.name):
        return {"name": "dinov3-license", "link": DINOV3_LICENSE}
    return {"name": reference.checkpoint.licence if reference.checkpoint else None, "link": None}


def demands(folder: Path) -> str:
    """A sentence on what DINOv3's licence demands of whoever passes this folder on."""
    enclosed = any(folder.glob("LICENSE*"))
    copy = "the copy of it that is enclosed" if enclosed else "a copy of it, which is not here yet"
    return (
        f"The weights are DINOv3's: whoever passes them on does so under the DINOv3 License, with "
        f"{copy} ({DINOV3_LICENSE}); NOTICE.txt goes along."
    )


def write_licence(encoder: Encoder, folder: Path) -> None:
    """Beside weights: the licence files of the encoder's folder, and NOTICE.txt for DINOv3's."""
    for path in sorted(encoder.reference.folder.glob("LICENSE*")):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    licence = licence_of(encoder)
    if licence["name"] == "dinov3-license":
        write_atomic(folder / "NOTICE.txt", NOTICE.format(link=licence["link"]))
