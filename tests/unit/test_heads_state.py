from __future__ import annotations

import json

import numpy as np
import pytest

from dinoprobe.errors import FormatError, HeadError, MismatchError
from dinoprobe.heads import (
    KNNProbe,
    LDAProbe,
    LinearProbe,
    LogisticProbe,
    PrototypeProbe,
    RidgeProbe,
    SklearnProbe,
    from_state,
    sklearn_probe,
    to_state,
)

HEADS = {
    "linear": LinearProbe(standardize=True),
    "logistic": LogisticProbe(C=1.0),
    "knn": KNNProbe(5),
    "lda": LDAProbe(),
    "ridge": RidgeProbe(),
    "prototype": PrototypeProbe(),
    "svc": sklearn_probe("sklearn.svm.SVC", C=3.0),
    "forest": sklearn_probe("sklearn.ensemble.RandomForestClassifier", n_estimators=5),
    "mlp": sklearn_probe("sklearn.neural_network.MLPClassifier", hidden_layer_sizes=(4,), tol=0.1),
}


def fitted(name, labels=("Ä", "b", "猫")):
    rng = np.random.default_rng(0)
    codes = np.arange(60) % len(labels)
    X = 3 * rng.normal(size=(len(labels), 4))[codes] + rng.normal(size=(60, 4))
    y = np.array([labels[code] for code in codes], dtype=object)
    head = HEADS[name]
    return type(head)(**head.get_params()).fit(X.astype(np.float32), y), X


@pytest.mark.parametrize("labels", [("Ä", "b", "猫"), ("no", "yes")], ids=len)
@pytest.mark.parametrize("name", HEADS)
def test_round_trip(name, labels):
    head, X = fitted(name, labels)
    config, arrays = to_state(head)
    loaded = from_state(json.loads(json.dumps(config)), arrays)
    assert loaded.classes_.tolist() == sorted(labels)
    np.testing.assert_allclose(loaded.predict_proba(X), head.predict_proba(X), atol=1e-12)
    assert loaded.predict(X).tolist() == head.predict(X).tolist()
    again, arrays_again = to_state(loaded)
    assert again == json.loads(json.dumps(config))
    assert all(np.array_equal(arrays[key], arrays_again[key]) for key in arrays)


@pytest.mark.parametrize("name", ["linear", "logistic", "lda", "ridge", "prototype"])
def test_linear_heads_have_a_row_for_each_class_and_the_same_bits(name):
    head, X = fitted(name, ("no", "yes"))
    config, arrays = to_state(head)
    assert config["kind"] == "linear"
    assert {key: (a.dtype, a.shape) for key, a in arrays.items()} == {
        "weight": (np.float32, (2, 4)),
        "bias": (np.float32, (2,)),
    }
    assert np.array_equal(from_state(config, arrays).predict_proba(X), head.predict_proba(X))


def test_loaded_linear_head_checks_features():
    loaded = from_state(*to_state(fitted("linear")[0]))
    with pytest.raises(ValueError, match="5 features"):
        loaded.predict(np.zeros((2, 5)))


def altered(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


COMMON_DAMAGE = {
    "another format": lambda c, a: c.update(format=2),
    "no format": lambda c, a: c.pop("format"),
    "unknown kind": lambda c, a: c.update(kind="pickle"),
    "kind is a list": lambda c, a: c.update(kind=[]),
    "no kind": lambda c, a: c.pop("kind"),
    "another key": lambda c, a: c.update(extra=1),
    "another array": lambda c, a: a.update(extra=np.zeros(1)),
    "no arrays": lambda c, a: a.clear(),
    "classes are no list": lambda c, a: c.update(classes="abc"),
    "no classes": lambda c, a: c.pop("classes"),
    "a class is a number": lambda c, a: c.update(classes=["a", "b", 3]),
    "a class more": lambda c, a: c["classes"].append("龍"),
    "a class less": lambda c, a: c["classes"].pop(),
    "a class twice": lambda c, a: c.update(classes=["a", "b", "b"]),
    "classes not sorted": lambda c, a: c["classes"].reverse(),
    "one class": lambda c, a: c.update(classes=["a"]),
    "features more": lambda c, a: c.update(n_features=5),
    "features zero": lambda c, a: c.update(n_features=0),
    "features true": lambda c, a: c.update(n_features=True),
}
ROWS_DAMAGE = {
    "features float64": lambda c, a: a.update(features=a["features"].astype(np.float64)),
    "features NaN": lambda c, a: a.update(features=altered(a["features"], (0, 0), np.nan)),
    "features cut": lambda c, a: a.update(features=a["features"][:-1]),
    "labels cut": lambda c, a: a.update(labels=a["labels"][:-1]),
    "labels int64": lambda c, a: a.update(labels=a["labels"].astype(np.int64)),
    "labels square": lambda c, a: a.update(labels=a["labels"][:, None]),
    "labels beyond": lambda c, a: a.update(labels=altered(a["labels"], 0, 3)),
    "labels negative": lambda c, a: a.update(labels=altered(a["labels"], 0, -1)),
    "no rows": lambda c, a: a.update(labels=a["labels"][:0], features=a["features"][:0]),
}
DAMAGE = {
    "logistic": {
        "weight transposed": lambda c, a: a.update(weight=a["weight"].T),
        "weight float64": lambda c, a: a.update(weight=a["weight"].astype(np.float64)),
        "weight NaN": lambda c, a: a.update(weight=altered(a["weight"], (0, 0), np.nan)),
        "bias infinite": lambda c, a: a.update(bias=altered(a["bias"], 0, np.inf)),
        "bias cut": lambda c, a: a.update(bias=a["bias"][:-1]),
        "no bias": lambda c, a: a.pop("bias"),
    },
    "knn": ROWS_DAMAGE
    | {
        "k beyond": lambda c, a: c.update(k=61),
        "k zero": lambda c, a: c.update(k=0),
        "k a float": lambda c, a: c.update(k=2.0),
        "temperature zero": lambda c, a: c.update(temperature=0),
        "temperature NaN": lambda c, a: c.update(temperature=float("nan")),
        "temperature text": lambda c, a: c.update(temperature="0.07"),
        "rows not normalised": lambda c, a: a.update(features=a["features"] * np.float32(2)),
    },
    "svc": ROWS_DAMAGE
    | {
        "foreign module": lambda c, a: c.update(estimator="os.system"),
        "foreign class in sklearn": lambda c, a: c.update(estimator="sklearn.utils.Bunch"),
        "re-exported module": lambda c, a: c.update(estimator="sklearn.base.warnings"),
        "regressor": lambda c, a: c.update(estimator="sklearn.svm.SVR"),
        "relative path": lambda c, a: c.update(estimator=".sklearn.svm.SVC"),
        "prefix only": lambda c, a: c.update(estimator="sklearn_evil.SVC"),
        "estimator a number": lambda c, a: c.update(estimator=3),
        "params a list": lambda c, a: c.update(params=[]),
        "unknown parameter": lambda c, a: c.update(params={"cost": 1}),
        "parameter out of range": lambda c, a: c.update(params={"C": -1}),
        "version a number": lambda c, a: c.update(sklearn_version=1.8),
        "probe cut": lambda c, a: a.update(probe=a["probe"][:-1]),
        "probe NaN": lambda c, a: a.update(probe=altered(a["probe"], (0, 0), np.nan)),
        "probe float32": lambda c, a: a.update(probe=a["probe"].astype(np.float32)),
    },
}
CASES = [
    (name, what, damage)
    for name, own in DAMAGE.items()
    for what, damage in (COMMON_DAMAGE | own).items()
]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name, _, damage in CASES],
    ids=[f"{name}: {what}" for name, what, _ in CASES],
)
def test_damage_is_refused(name, damage):
    config, arrays = to_state(fitted(name)[0])
    damage(config, arrays)
    with pytest.raises(FormatError, match="Saved head: ") as caught:
        from_state(config, arrays)
    assert not isinstance(caught.value, MismatchError)


def test_config_of_another_type():
    with pytest.raises(FormatError, match="found format 'list'"):
        from_state([], {})


def test_head_that_predicts_differently_is_refused():
    config, arrays = to_state(fitted("svc")[0])
    arrays["probe"] = np.roll(arrays["probe"], 1, axis=1)
    config["sklearn_version"] = "1.0"
    with pytest.raises(MismatchError, match=r"off by .* from those of scikit-learn 1\.0"):
        from_state(config, arrays)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LogisticProbe(), "LogisticProbe is not fitted"),
        (KNNProbe().fit([[0, 1], [1, 0]], [0, 1]), "only a head with string labels"),
        (
            SklearnProbe("sklearn.svm.SVC", {"C": np.float32(2)}).fit([[0, 1], [1, 0]], ["a", "b"]),
            "only values that JSON can hold",
        ),
    ],
)
def test_heads_that_can_not_be_saved(head, message):
    with pytest.raises(HeadError, match=message):
        to_state(head)
