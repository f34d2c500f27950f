"""`ImageClassifier`: encoder + preprocessing + head, saved as one directory.

    config.json         format and version, encoder by id, commit and digest, preprocessing,
                        pooling, precision, fingerprint, the head's values, training, figures,
                        thresholds of prediction sets, of novelty and of abstention
    head.safetensors    the head's arrays; its SHA-256 stands in config.json
    novelty.safetensors    what tells images unlike the training images; likewise, 1 to 5 MB
    README.md           a model card
    int8/               only in that precision: the graph that was calibrated
    encoder/            only when bundled: the encoder's own files with its licence

Kilobytes instead of gigabytes: the encoder is named, not copied. Everything that must agree is
verified at load, and a mismatch names both sides.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from dinoprobe.errors import (
    ConfigurationError,
    EncoderNotFoundError,
    FormatError,
    MismatchError,
)
from dinoprobe.prediction import Prediction, Rules, Score
from dinoprobe.types import Failure
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.encoder import Encoder, EncoderPlace, EncoderReference, Int8
    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.engine import Encoded, Facts
    from dinoprobe.heads import Abstention, MultiLabelProbe, Novelty, PredictionSets, ProbeBase

FORMAT = "dinoprobe-classifier"
FORMAT_VERSION = 1
_CONFIG_FILE = "config.json"
_HEAD_FILE = "head.safetensors"
_NOVELTY_FILE = "novelty.safetensors"
_ENCODER_FOLDER = "encoder"
_STAGING_FOLDER = ".encoder.new"
_INT8_FOLDER = "int8"
_BLOCK_ROWS = 64
_FIELDS = {
    "format",
    "format_version",
    "dinoprobe_version",
    "encoder",
    "preprocessing",
    "pooling",
    "precision",
    "fingerprint",
    "classes",
    "head",
    "head_digest",
    "training",
    "figures",
}

_ENCODER_FIELDS = {"name", "commit", "model_type", "weights_digest", "bundled"}


@final
class ImageClassifier:
    """A frozen encoder with a fitted head.

    `training` and `figures` are JSON values that travel with it: what it was trained on, and what
    was measured. `sets` decides which labels stand in a prediction's set, `novelty` which images
    are unlike the training images, `abstention` which are not answered; None for none of it. A
    `MultiLabelProbe` has thresholds of its own.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: ProbeBase | MultiLabelProbe,
        *,
        training: dict[str, Any] | None = None,
        figures: dict[str, Any] | None = None,
        sets: PredictionSets | None = None,
        novelty: Novelty | None = None,
        abstention: Abstention | None = None,
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.training = training or {}
        self.figures = figures or {}
        self.sets = sets
        self.novelty = novelty
        self.abstention = abstention

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the columns of `predict_proba`."""
        return tuple(str(name) for name in self.head.classes_)

    def predict_features(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Probabilities `(n, classes)` of features `(n, dimension)` from this encoder.

        An attentive head takes patch tokens, as `(n, tokens, width)` or one after the other.
        """
        from dinoprobe.heads import AttentiveProbe

        if isinstance(self.head, AttentiveProbe) and X.ndim == 2:
            X = X.reshape(len(X), -1, self.head.n_features_in_)
        return self.head.predict_proba(X)

    def predict(
        self, images: object, *, top_k: int = 5, abstain_below: float | None = None
    ) -> list[Prediction]:
        """One `Prediction` per image, in their order; no label below the probability.

        `images` is whatever `open_dataset` takes: a path, a list of paths, a folder, arrays, PIL
        images, bytes. A broken image gives a prediction with a failure. Without `abstain_below`
        the classifier's own rule decides; 0 always answers. Raises DatasetError when nothing is
        there.
        """
        return list(self.predict_iter(images, top_k=top_k, abstain_below=abstain_below))

    def predict_iter(
        self, images: object, *, top_k: int = 5, abstain_below: float | None = None
    ) -> Iterator[Prediction]:
        """As `predict`, one after the other: memory does not grow with the number of images."""
        from dinoprobe.datasets import open_dataset
        from dinoprobe.engine import PatchTokens, encode
        from dinoprobe.heads import AttentiveProbe

        by_tokens = isinstance(self.head, AttentiveProbe)
        source = PatchTokens(self.encoder) if by_tokens else self.encoder
        found = encode(open_dataset(images).samples, source)
        while block := list(islice(found, _BLOCK_ROWS)):
            yield from self._predict_block(block, top_k, abstain_below)

    def _predict_block(
        self, block: list[Encoded | Failure], top_k: int, abstain_below: float | None
    ) -> Iterator[Prediction]:
        import numpy as np

        rows = [item.row for item in block if not isinstance(item, Failure)]
        answers = iter(self._answers(np.stack(rows), top_k, abstain_below) if rows else ())
        for item in block:
            if isinstance(item, Failure):
                yield Prediction(item.key, None, None, failure=item)
            else:
                yield replace(next(answers), key=item.key)

    def _answers(
        self, X: npt.NDArray[np.float32], top_k: int, abstain_below: float | None
    ) -> Iterator[Prediction]:
        """Predictions of features `(n, dimension)`, without their keys."""
        scores = self.novelty_scores(X)
        return self.rules.predictions(
            self.predict_features(X), scores, top_k=top_k, abstain_below=abstain_below
        )

    @property
    def rules(self) -> Rules:
        """What turns probabilities into answers."""
        return Rules(
            self.classes,
            sets=self.sets,
            abstention=self.abstention,
            novelty_threshold=None if self.novelty is None else self.novelty.threshold,
            label_thresholds=getattr(self.head, "thresholds_", None),
        )

    def novelty_scores(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """How strange each row of features is, `(n,)`; None without a measure."""
        return None if self.novelty is None else self.novelty.scores(X)

    def save(self, path: str | Path, *, bundle_encoder: bool = False, card: str = "") -> None:
        """Write the directory, config.json last: it holds the digest of the head beside it.

        `bundle_encoder` copies the encoder's files, its licence with them. Raises FormatError when
        the head has no form without pickle, ConfigurationError when `path` holds something else.
        """
        from dinoprobe.files import save_tensors, sha256_file, write_atomic, write_json
        from dinoprobe.heads import to_state

        folder = Path(path).expanduser()
        _refuse_foreign(folder)
        state, arrays = to_state(self.head)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / _HEAD_FILE, arrays)
        if bundle_encoder:
            reference = self.encoder.reference
            _bundle(reference.folder, reference.file, folder / _ENCODER_FOLDER)
        if card:
            write_atomic(folder / "README.md", card)
        _save_int8(self.encoder.int8, folder / _INT8_FOLDER)
        config = self._config(state, sha256_file(folder / _HEAD_FILE), bundled=bundle_encoder)
        novelty = _save_novelty(self.novelty, folder / _NOVELTY_FILE)
        write_json(folder / _CONFIG_FILE, {**config, "novelty": novelty})

    def _config(self, state: dict[str, Any], head_digest: str, *, bundled: bool) -> dict[str, Any]:
        encoder = self.encoder
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dinoprobe_version": own_version(),
            "encoder": {
                "name": encoder.reference.name,
                "commit": encoder.reference.commit,
                "model_type": encoder.model_type,
                "weights_digest": encoder.weights_digest,
                "bundled": bundled,
                "rope": encoder.rope,
                "int8_digest": encoder.int8.digest if encoder.int8 else None,
                "int8_pooling": encoder.int8.pooling if encoder.int8 else None,
            },
            "preprocessing": encoder.preprocessing.to_dict(),
            "pooling": encoder.pooling,
            "precision": encoder.precision,
            "fingerprint": encoder.fingerprint,
            "classes": list(self.classes),
            "head": state,
            "head_digest": head_digest,
            "training": self.training,
            "figures": self.figures,
            "sets": self.sets and self.sets.to_dict(),
            "abstention": self.abstention and self.abstention.to_dict(),
        }

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", encoder: str | None = None
    ) -> ImageClassifier:
        """Read a directory that `save` wrote, and the encoder that it names.

        `encoder` gives another place of the same weights; digests are verified either way. Raises
        FormatError for a damaged or foreign directory, MismatchError when weights, preprocessing or
        head are not those it was saved with, and what `Encoder.from_pretrained` raises.
        """
        from dinoprobe.encoder import EncoderPlace

        return cls.load_at(path, EncoderPlace(encoder, device))

    @classmethod
    def load_at(
        cls,
        path: str | Path,
        place: EncoderPlace,
        *,
        say: Callable[[str], None] = lambda _: None,
        transfer: Transfer | None = None,
    ) -> ImageClassifier:
        """As `load`, with the encoder anywhere: on several devices, from another place.

        `say` gets sentences while the encoder is fetched and loaded, `transfer` the bytes.
        """
        folder = classifier_folder(path)
        config = read_config(folder)
        head = _load_head(folder, config)
        encoder = open_saved_encoder(folder, config, place, say=say, transfer=transfer)
        return cls._with_head(folder, config, encoder, head)

    @classmethod
    def load_with(cls, path: str | Path, encoder: Encoder | Facts) -> ImageClassifier:
        """As `load`, with an encoder that is open already. With `Facts`, of one that other
        processes hold, it classifies features and no images. Raises MismatchError for another one.
        """
        folder = classifier_folder(path)
        config = read_config(folder)
        _expect("encoder: fingerprint", encoder.fingerprint, config["fingerprint"])
        head = _load_head(folder, config)
        return cls._with_head(folder, config, cast("Encoder", encoder), head)

    @classmethod
    def _with_head(
        cls,
        folder: Path,
        config: dict[str, Any],
        encoder: Encoder,
        head: ProbeBase | MultiLabelProbe,
    ) -> ImageClassifier:
        return cls(
            encoder,
            head,
            training=config["training"],
            figures=config["figures"],
            sets=_load_sets(config),
            novelty=_load_novelty(folder, config, encoder.dimension),
            abstention=_load_abstention(config),
        )


def classifier_folder(path: str | Path) -> Path:
    """The directory with config.json: `path` itself, or `classifier/` in a run directory."""
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "classifier"):
        config = candidate / _CONFIG_FILE
        if config.is_file() and (candidate / _HEAD_FILE).exists():
            return candidate
    what = "no such directory" if not folder.is_dir() else f"no {_CONFIG_FILE} with {_HEAD_FILE}"
    msg = f"{path}: {what}. Expected a run of `dinoprobe train`, or its classifier/ directory."
    raise FormatError(msg)


def read_config(folder: Path) -> dict[str, Any]:
    """The verified config.json of a classifier. Raises FormatError."""
    from dinoprobe.files import read_json

    path = folder / _CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise FormatError(f"{path}: format is {found!r}, expected '{FORMAT}'. Give a classifier.")
    if config.get("format_version") != FORMAT_VERSION:
        msg = (
            f"{path}: format version {config.get('format_version')!r}, this dinoprobe reads "
            f"{FORMAT_VERSION}. Install the dinoprobe that wrote it, or train again."
        )
        raise FormatError(msg)
    if missing := sorted(_FIELDS - config.keys()):
        raise FormatError(f"{path}: lacks {', '.join(missing)}. The file is damaged; train again.")
    for name in ("encoder", "preprocessing", "head", "training", "figures"):
        if not isinstance(config[name], dict):
            msg = f"{path}: '{name}' is not an object. The file is damaged; train again."
            raise FormatError(msg)
    if missing := sorted(_ENCODER_FIELDS - config["encoder"].keys()):
        msg = f"{path}: 'encoder' lacks {', '.join(missing)}. The file is damaged; train again."
        raise FormatError(msg)
    return config


def _load_head(folder: Path, config: dict[str, Any]) -> ProbeBase | MultiLabelProbe:
    from dinoprobe.files import load_tensors, sha256_file
    from dinoprobe.heads import from_state

    path = folder / _HEAD_FILE
    _expect(f"{path}: SHA-256", sha256_file(path), config["head_digest"])
    head = from_state(config["head"], load_tensors(path))
    names = [str(name) for name in head.classes_]
    _expect(f"{folder}: classes of the head", names, config["classes"])
    return head


def _load_sets(config: dict[str, Any]) -> PredictionSets | None:
    """None for a classifier without sets, or from before there were any."""
    from dinoprobe.heads import PredictionSets

    values = config.get("sets")
    return None if values is None else PredictionSets.from_dict(values, len(config["classes"]))


def _load_novelty(folder: Path, config: dict[str, Any], dimension: int) -> Novelty | None:
    """None for a classifier without one. Raises FormatError and MismatchError."""
    from dinoprobe.files import load_tensors, sha256_file
    from dinoprobe.heads import Novelty

    values = config.get("novelty")
    if values is None:
        return None
    path = folder / _NOVELTY_FILE
    if not path.is_file():
        raise FormatError(f"{path}: missing. Restore it, or train again.")
    digest = values.get("digest") if isinstance(values, dict) else None
    _expect(f"{path}: SHA-256", sha256_file(path), digest)
    return Novelty.from_dict(values, load_tensors(path), dimension)


def _save_novelty(novelty: Novelty | None, path: Path) -> dict[str, Any] | None:
    """Write its arrays; what config.json says of it. An old file is removed where there is none."""
    from dinoprobe.files import save_tensors, sha256_file

    if novelty is None:
        path.unlink(missing_ok=True)
        return None
    save_tensors(path, novelty.arrays)
    return {**novelty.to_dict(), "digest": sha256_file(path)}


def _load_abstention(config: dict[str, Any]) -> Abstention | None:
    """None for a classifier that always answers."""
    from dinoprobe.heads import Abstention

    values = config.get("abstention")
    has_novelty = config.get("novelty") is not None
    return None if values is None else Abstention.from_dict(values, has_novelty=has_novelty)


def open_saved_encoder(
    folder: Path,
    config: dict[str, Any],
    place: EncoderPlace,
    *,
    say: Callable[[str], None] = lambda _: None,
    transfer: Transfer | None = None,
) -> Encoder:
    """The encoder of the classifier in `folder`, whose config.json this is; the folder itself is
    read only for an encoder that is bundled, or in int8. Raises what `load_at` does.
    """
    reference = _find_encoder(folder, config, place, say, transfer)
    return _load_encoder(folder, config, place, reference, say)


def _find_encoder(
    folder: Path,
    config: dict[str, Any],
    place: EncoderPlace,
    say: Callable[[str], None],
    transfer: Transfer | None,
) -> EncoderReference:
    """The bundled encoder, the one that `place` names, or the one that it was trained with."""
    from dinoprobe.encoder import EncoderReference, locate

    saved = config["encoder"]
    given = place.name or _saved_name(saved)
    if saved["bundled"] and place.name is None:
        own = (folder / _ENCODER_FOLDER).resolve()
        return EncoderReference(saved["name"], saved["commit"], own)
    try:
        return locate(given, say=say, transfer=transfer)
    except EncoderNotFoundError as error:
        if place.name is not None:
            raise
        msg = (
            f"{folder}: its encoder was loaded from {given}, where nothing is now. Say where the "
            f"same weights are: --encoder NAME, or load(encoder=NAME). ({error})"
        )
        raise EncoderNotFoundError(msg) from error


def _load_encoder(
    folder: Path,
    config: dict[str, Any],
    place: EncoderPlace,
    reference: EncoderReference,
    say: Callable[[str], None],
) -> Encoder:
    from dinoprobe.encoder import Encoder, spread_of
    from dinoprobe.preprocess import Preprocessing

    saved = config["encoder"]
    int8 = _load_int8(folder / _INT8_FOLDER, saved)
    encoder = Encoder.from_pretrained(
        reference,
        pooling=config["pooling"],
        device=place.device,
        dtype="auto" if int8 else config["precision"],
        precision="int8" if int8 else "auto",
        int8=int8,
        preprocessing=Preprocessing.from_dict(config["preprocessing"]),
        backend=place.backend,
        spread=spread_of(place.device_map, place.max_memory),
        rope=str(saved.get("rope", "float32")),
        say=say,
    )
    _expect("encoder: digest of the weights", encoder.weights_digest, saved["weights_digest"])
    _expect("encoder: fingerprint", encoder.fingerprint, config["fingerprint"])
    return encoder


def _save_int8(int8: Int8 | None, folder: Path) -> None:
    """The graph, copied; none, and an old one removed, in another precision."""
    if int8 is not None and int8.folder.resolve() == folder.resolve():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if int8 is not None:
        shutil.copytree(int8.folder, folder)


def _load_int8(folder: Path, saved: dict[str, Any]) -> Int8 | None:
    """The graph that was saved, whole and unchanged. Raises FormatError or MismatchError."""
    digest = saved.get("int8_digest")
    if digest is None:
        return None
    from dinoprobe.encoder import Int8
    from dinoprobe.encoder.backends.int8 import graph_digest

    try:
        found = graph_digest(folder)
    except OSError as error:
        msg = f"{folder}: the int8 graph is missing ({error.strerror}). Restore it, or train again."
        raise FormatError(msg) from error
    _expect(f"{folder}: SHA-256 of the int8 graph", found, digest)
    return Int8(folder, digest, saved.get("int8_pooling"))


def _saved_name(saved: dict[str, Any]) -> str:
    return f"{saved['name']}@{saved['commit']}" if saved["commit"] else str(saved["name"])


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        msg = (
            f"{what} is {found!r}, and the classifier was saved with {expected!r}. Give the same "
            "encoder and the unchanged files, or train again."
        )
        raise MismatchError(msg)


def _refuse_foreign(folder: Path) -> None:
    known = {_CONFIG_FILE, _HEAD_FILE, _NOVELTY_FILE, "README.md"}
    known |= {_ENCODER_FOLDER, _STAGING_FOLDER, _INT8_FOLDER}
    if folder.is_file():
        raise ConfigurationError(f"{folder}: a file, expected a directory. Give another path.")
    if not folder.is_dir():
        return
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".dinoprobe-")}
    if _CONFIG_FILE in names:
        read_config(folder)
    foreign = sorted(names - known if _HEAD_FILE in names else names)
    if foreign:
        msg = f"{folder}: holds other files ({foreign[0]}). Give an empty or a new directory."
        raise ConfigurationError(msg)


def _bundle(source: Path, weights: Path | None, target: Path) -> None:
    """Copy the files of the checkpoint, its licence with them, and nothing else of its folder.

    `weights` is the one file that was loaded, where the folder holds others too.
    """
    from dinoprobe.encoder.hub import CHECKPOINT_FILES

    staging = target.with_name(_STAGING_FOLDER)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    kept = weights and {weights.name}
    for pattern in CHECKPOINT_FILES:
        for path in source.glob(pattern):
            is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
            if kept and is_weights and path.name not in kept:
                continue
            shutil.copyfile(path, staging / path.name)  # follows the links of the hub's cache
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)


def training_digest(keys: tuple[str, ...], hashes: tuple[str, ...], labels: list[str]) -> str:
    """SHA-256 in hex over the sorted (key, content hash, label) of the training rows."""
    rows = sorted(zip(keys, hashes, labels, strict=True))
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


__all__ = [
    "ImageClassifier",
    "Prediction",
    "Score",
    "classifier_folder",
    "open_saved_encoder",
    "read_config",
    "training_digest",
]
