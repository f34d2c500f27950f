"""The saved classifier: round trip, and refusal of everything that does not agree."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit

from dinoprobe.classifier import ImageClassifier, classifier_folder, training_digest
from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder, EncoderPlace
from dinoprobe.engine import encode
from dinoprobe.errors import (
    ConfigurationError,
    EncoderNotFoundError,
    FormatError,
    MismatchError,
)
from dinoprobe.heads import (
    Abstention,
    KNNProbe,
    LogisticProbe,
    MultiLabelProbe,
    Novelty,
    PredictionSets,
    confidence,
    fit_novelty,
    left_out_scores,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def encoder(vit: Path) -> Encoder:
    return Encoder.from_pretrained(str(vit), device="cpu")


def png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 10, 200)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def classifier(encoder: Encoder) -> ImageClassifier:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["cat", "dog", "猫"] * 10, dtype=object))
    return ImageClassifier(encoder, head, training={"n": 30}, figures={"accuracy": 0.5})


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["logistic", "knn"])
def test_saved_and_loaded_it_predicts_the_same_bits(
    classifier: ImageClassifier, kind: str, tmp_path: Path
) -> None:
    X = np.random.default_rng(1).normal(size=(20, classifier.encoder.dimension)).astype(np.float32)
    if kind == "knn":
        labels = np.array(["cat", "dog"] * 10, dtype=object)
        classifier = ImageClassifier(classifier.encoder, KNNProbe(k=3).fit(X, labels))
    classifier.save(tmp_path / "c")
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    np.testing.assert_array_equal(loaded.predict_features(X), classifier.predict_features(X))
    assert loaded.classes == classifier.classes
    assert loaded.training == classifier.training
    assert loaded.figures == classifier.figures


def test_predictions_have_sorted_top_and_failures(classifier: ImageClassifier) -> None:
    good, broken, other = classifier.predict([png(1), b"not an image", png(250)], top_k=2)
    assert good.label == good.top[0].label
    assert [s.probability for s in good.top] == sorted(
        (s.probability for s in good.top), reverse=True
    )
    assert len(good.top) == 2
    assert broken.label is None
    assert broken.failure is not None
    assert broken.failure.reason
    assert other.failure is None


def test_several_labels_an_image_are_those_above_their_thresholds(
    encoder: Encoder, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, encoder.dimension)).astype(np.float32)
    head = MultiLabelProbe(C=1.0).fit(X, rng.integers(0, 2, (60, 3)), classes=["a", "c", "b"])
    ImageClassifier(encoder, head).save(tmp_path / "c")
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert loaded.classes == ("a", "c", "b")
    np.testing.assert_array_equal(loaded.predict_features(X), head.predict_proba(X))
    image = png(1)
    (found,) = loaded.predict([image])
    by_label = {score.label: score.probability for score in found.top}
    for lows, labels in (
        ([0.0, 0.0, 0.0], sorted(by_label, key=lambda name: -by_label[name])),
        ([2.0, 0.0, 2.0], ["c"]),
        ([2.0, 2.0, 2.0], []),
    ):
        loaded.head.thresholds_ = np.array(lows)
        (found,) = loaded.predict([image])
        assert found.labels == tuple(labels)
        assert found.label == (labels[0] if labels else None)
        assert found.probability == by_label[labels[0] if labels else found.top[0].label]
        assert not found.abstained


def test_only_the_head_is_saved(classifier: ImageClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c", card="# card")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "README.md",
        "config.json",
        "head.safetensors",
    ]
    assert sum(p.stat().st_size for p in (tmp_path / "c").iterdir()) < 10_000


def test_a_bundled_encoder_travels_with_its_licence(
    vit: Path, classifier: ImageClassifier, tmp_path: Path
) -> None:
    (vit / "LICENSE.md").write_text("terms")
    classifier.save(tmp_path / "c", bundle_encoder=True)
    moved = (tmp_path / "c").rename(tmp_path / "moved")
    assert (moved / "encoder" / "LICENSE.md").read_text() == "terms"
    assert ImageClassifier.load(moved, device="cpu").classes == classifier.classes


def test_saving_over_itself_works_and_over_other_files_does_not(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "c")
    classifier.save(tmp_path / "c")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"holds other files \(cat\.jpg\)"):
        classifier.save(tmp_path / "photos")


def test_a_run_directory_loads_too(classifier: ImageClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "run" / "classifier")
    assert classifier_folder(tmp_path / "run") == tmp_path / "run" / "classifier"


def test_an_encoder_that_was_moved_can_be_named(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path / "here")), device="cpu")
    X = np.random.default_rng(0).normal(size=(10, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["a", "b"] * 5, dtype=object))
    ImageClassifier(encoder, head).save(tmp_path / "c")
    there = (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(EncoderNotFoundError, match="where nothing is now"):
        ImageClassifier.load(tmp_path / "c", device="cpu")
    assert ImageClassifier.load(tmp_path / "c", device="cpu", encoder=str(there)).classes == (
        "a",
        "b",
    )


def fitted(encoder: Encoder) -> ImageClassifier:
    X = np.random.default_rng(0).normal(size=(10, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["a", "b"] * 5, dtype=object))
    return ImageClassifier(encoder, head)


def test_the_rounded_positions_are_loaded_again(vit: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(vit), device="cpu", rope="meta-bf16")
    fitted(encoder).save(tmp_path / "c")
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert (loaded.encoder.rope, loaded.encoder.fingerprint) == ("meta-bf16", encoder.fingerprint)


def test_a_classifier_loads_over_several_devices(vit: Path, tmp_path: Path) -> None:
    fitted(Encoder.from_pretrained(str(vit), device="cpu")).save(tmp_path / "c")
    place = EncoderPlace(device_map="auto", max_memory="cpu=60KB")
    loaded = ImageClassifier.load_at(tmp_path / "c", place)
    assert loaded.encoder.is_spread
    assert loaded.predict([png(200)])[0].label in {"a", "b"}


def test_weights_of_another_source_serve_the_same_classifier(tmp_path: Path) -> None:
    """Saved with a folder of the hub's kind, loaded with the same weights in timm's names."""
    from safetensors.torch import save_file
    from tests.layouts import ViT, timm_vit

    tensors = timm_vit(ViT(192, 1, 3, 48))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    save_file(tensors, tmp_path / "one" / "timm.safetensors")
    timm = Encoder.from_pretrained(str(tmp_path / "one" / "timm.safetensors"), device="cpu")
    timm.model.save_pretrained(tmp_path / "two")
    hub = Encoder.from_pretrained(str(tmp_path / "two"), device="cpu")
    fitted(hub).save(tmp_path / "c")
    loaded = ImageClassifier.load(
        tmp_path / "c", device="cpu", encoder=str(tmp_path / "one" / "timm.safetensors")
    )
    assert loaded.encoder.fingerprint == hub.fingerprint


def test_another_name_that_means_nothing_gets_its_own_message(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "c")
    (tmp_path / "fresh file.pth").write_bytes(b"x")
    with pytest.raises(EncoderNotFoundError, match="Did you mean vits16"):
        ImageClassifier.load(tmp_path / "c", encoder="vits61")
    with pytest.raises(EncoderNotFoundError, match=r"Run: dinoprobe pull '.*fresh file\.pth'"):
        ImageClassifier.load(tmp_path / "c", encoder=str(tmp_path / "fresh file.pth"))


def test_one_file_of_many_is_bundled_alone(vit: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "weights"
    shutil.copytree(vit, folder, ignore=shutil.ignore_patterns(".git", "*.bin"))
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    (folder / "other.safetensors").write_bytes(b"of another model")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone"}}')
    encoder = Encoder.from_pretrained(str(folder / "mine.safetensors"), device="cpu")
    fitted(encoder).save(tmp_path / "c", bundle_encoder=True)
    bundled = {path.name for path in (tmp_path / "c" / "encoder").iterdir()}
    assert "mine.safetensors" in bundled
    assert "other.safetensors" not in bundled
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert loaded.encoder.fingerprint == encoder.fingerprint


def test_only_the_checkpoint_is_bundled(
    classifier: ImageClassifier, vit: Path, tmp_path: Path
) -> None:
    (vit / "pytorch_model.bin").write_bytes(b"pickle")
    (vit / ".git").mkdir(exist_ok=True)
    classifier.save(tmp_path / "c", bundle_encoder=True)
    names = {p.name for p in (tmp_path / "c" / "encoder").iterdir()}
    (vit / "pytorch_model.bin").unlink()
    assert names - {"LICENSE.md"} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_another_programs_config_is_not_overwritten(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(FormatError, match="format is None"):
        classifier.save(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


def test_other_weights_are_refused_and_both_sides_named(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    other = save_vit(tmp_path / "other", seed=9)
    classifier.save(tmp_path / "c")
    digest = classifier.encoder.weights_digest
    with pytest.raises(MismatchError, match=rf"digest of the weights is '(?!{digest}).*'{digest}'"):
        ImageClassifier.load(tmp_path / "c", device="cpu", encoder=str(other))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"pooling": "cls"}, MismatchError, "fingerprint"),
        ({"classes": ["a", "b", "c"]}, MismatchError, "classes of the head"),
        ({"head_digest": "0"}, MismatchError, "SHA-256"),
        ({"format_version": 2}, FormatError, "format version 2, this dinoprobe reads 1"),
        ({"format": "pickle"}, FormatError, "format is 'pickle'"),
    ],
)
def test_what_does_not_agree_is_refused(
    classifier: ImageClassifier,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    says: str,
) -> None:
    classifier.save(tmp_path / "c")
    edit(tmp_path / "c", **changes)
    with pytest.raises(error, match=says):
        ImageClassifier.load(tmp_path / "c", device="cpu")


def test_changed_preprocessing_is_refused(classifier: ImageClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c")
    values = json.loads((tmp_path / "c" / "config.json").read_text())["preprocessing"]
    edit(tmp_path / "c", preprocessing={**values, "size": [64, 64]})
    with pytest.raises(MismatchError, match="fingerprint"):
        ImageClassifier.load(tmp_path / "c", device="cpu")


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_changed_byte_of_the_head_is_refused(
    classifier: ImageClassifier, tmp_path: Path, position: int
) -> None:
    classifier.save(tmp_path / "c")
    path = tmp_path / "c" / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(MismatchError, match="SHA-256"):
        ImageClassifier.load(tmp_path / "c", device="cpu")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "dinoprobe-classifier", "format_version": 1}']
)
def test_a_damaged_config_is_refused(
    classifier: ImageClassifier, tmp_path: Path, text: str
) -> None:
    classifier.save(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        ImageClassifier.load(tmp_path / "c", device="cpu")


def test_nothing_there_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such directory"):
        ImageClassifier.load(tmp_path / "nothing")


def test_the_training_digest_follows_labels_and_not_the_order() -> None:
    digest = training_digest(("a", "b"), ("1", "2"), ["x", "y"])
    assert digest == training_digest(("b", "a"), ("2", "1"), ["y", "x"])
    assert digest != training_digest(("a", "b"), ("1", "2"), ["y", "x"])


def test_prediction_sets_travel_with_the_classifier(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    classifier.sets = PredictionSets("lac", 0.9, (0.7, 0.2, float("inf")), 30)
    classifier.save(tmp_path / "c")
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert loaded.sets == classifier.sets
    found = loaded.rules.prediction("k", np.array([0.35, 0.6, 0.05]), 1)
    assert found.label == "dog"
    assert found.labels == ("dog", "cat", "猫")
    assert loaded.rules.prediction("k", np.array([0.25, 0.7, 0.05]), 1).labels == ("dog", "猫")
    broken, whole = loaded.predict([b"no image", png(1)])
    assert broken.labels is None
    assert whole.labels is not None
    assert whole.label in whole.labels


def test_a_classifier_from_before_there_were_sets_loads(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("sets") is None
    path.write_text(json.dumps(values))
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert loaded.sets is None
    assert loaded.predict([png(1)])[0].labels is None


@pytest.mark.parametrize("sets", [[], {"method": "lac"}, {"thresholds": [0.1, 0.2]}, "lac"])
def test_damaged_sets_are_refused(
    classifier: ImageClassifier, sets: object, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "c")
    edit(tmp_path / "c", sets=sets)
    with pytest.raises(FormatError, match="Saved prediction sets"):
        ImageClassifier.load(tmp_path / "c", device="cpu")


def test_it_abstains_below_a_probability(classifier: ImageClassifier) -> None:
    sure = classifier.predict([png(1)])[0]
    assert sure.probability is not None
    assert not sure.abstained
    below = classifier.predict([png(1), b"broken"], abstain_below=sure.probability)
    assert below[0] == sure
    assert not below[1].abstained
    (found,) = classifier.predict([png(1)], abstain_below=np.nextafter(sure.probability, 1))
    assert (found.label, found.abstained) == (None, True)
    assert (found.top, found.probability) == (sure.top, sure.probability)


@pytest.fixture(scope="module")
def novelty(encoder: Encoder) -> Novelty:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, encoder.dimension)).astype(np.float32)
    y = np.array(["cat", "dog", "猫"] * 20, dtype=object)
    return fit_novelty(X, y, left_out_scores(X, y, np.arange(60) % 5, "mahalanobis"))


def test_what_is_unlike_the_training_images_is_flagged_before_and_after_saving(
    classifier: ImageClassifier, novelty: Novelty, tmp_path: Path
) -> None:
    plain = classifier.predict([png(1)])[0]
    assert (plain.novelty, plain.novel) == (None, False)
    classifier.novelty = replace(novelty, threshold=-1e9)
    broken, found = classifier.predict([b"broken", png(1)])
    assert (broken.novelty, broken.novel) == (None, False)
    assert found.novel
    assert found.label == plain.label
    classifier.save(tmp_path / "c")
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert loaded.predict([b"broken", png(1)])[1] == found
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert set(config["novelty"]) == {"method", "threshold", "share", "n", "digest"}
    classifier.novelty = replace(novelty, threshold=found.novelty)
    assert not classifier.predict([png(1)])[0].novel
    classifier.novelty = None
    classifier.save(tmp_path / "c")
    assert not (tmp_path / "c" / "novelty.safetensors").exists()
    assert ImageClassifier.load(tmp_path / "c", device="cpu").novelty is None


def test_a_changed_or_missing_measure_is_refused(
    classifier: ImageClassifier, novelty: Novelty, tmp_path: Path
) -> None:
    classifier.novelty = novelty
    classifier.save(tmp_path / "c")
    values = json.loads((tmp_path / "c" / "config.json").read_text())["novelty"]
    for changed in ([], "knn", {**values, "method": "no"}, {**values, "threshold": None}):
        edit(tmp_path / "c", novelty=changed)
        with pytest.raises((FormatError, MismatchError)):
            ImageClassifier.load(tmp_path / "c", device="cpu")
    edit(tmp_path / "c", novelty=values)
    path = tmp_path / "c" / "novelty.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\0\0\0\1")
    with pytest.raises(MismatchError, match=r"novelty\.safetensors: SHA-256"):
        ImageClassifier.load(tmp_path / "c", device="cpu")
    path.write_bytes(data[:100])
    digest = hashlib.sha256(data[:100]).hexdigest()
    edit(tmp_path / "c", novelty={**values, "digest": digest})
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        ImageClassifier.load(tmp_path / "c", device="cpu")
    path.unlink()
    with pytest.raises(FormatError, match=r"novelty\.safetensors: missing"):
        ImageClassifier.load(tmp_path / "c", device="cpu")


@pytest.mark.parametrize("by", ["probability", "energy", "distance"])
def test_the_rule_of_abstention_travels_and_can_be_overruled(
    classifier: ImageClassifier, novelty: Novelty, by: str, tmp_path: Path
) -> None:
    classifier.novelty = novelty
    found = classifier.predict([png(1)])[0]
    X = np.stack([item.row for item in encode(open_dataset([png(1)]).samples, classifier.encoder)])
    P = classifier.predict_features(X)
    sure = float(confidence(by, P, novelty.scores(X))[0])
    classifier.abstention = Abstention(by, sure, 0.9, 0.8, 0.95, 60)
    assert classifier.predict([png(1)]) == [found]
    classifier.abstention = replace(classifier.abstention, threshold=sure + 1e-6)
    classifier.save(tmp_path / "c")
    loaded = ImageClassifier.load(tmp_path / "c", device="cpu")
    assert loaded.abstention == classifier.abstention
    (unsure,) = loaded.predict([png(1)])
    assert (unsure.label, unsure.abstained, unsure.top) == (None, True, found.top)
    assert loaded.predict([png(1)], abstain_below=0.0) == [found]


@pytest.mark.parametrize(
    "change", [{"by": "odds"}, {"by": "distance"}, {"threshold": None}, {"n": 1.5}, {"target": "x"}]
)
def test_a_damaged_rule_is_refused(
    classifier: ImageClassifier, change: dict[str, object], tmp_path: Path
) -> None:
    rule = Abstention("probability", 0.5, 0.9, 0.8, 0.95, 60)
    classifier.save(tmp_path / "c")
    edit(tmp_path / "c", abstention={**rule.to_dict(), **change})
    with pytest.raises(FormatError, match="Saved rule of abstention"):
        ImageClassifier.load(tmp_path / "c", device="cpu")
