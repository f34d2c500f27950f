"""The heads in closed form: scikit-learn as the oracle, refits, merging, and what is degenerate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import StandardScaler, normalize

from dinoprobe.errors import HeadError
from dinoprobe.heads import LDAProbe, PrototypeProbe, RidgeProbe, from_state, to_state
from dinoprobe.heads import closed as closed_module
from dinoprobe.heads import ridge as ridge_module
from dinoprobe.heads import statistics as statistics_module
from dinoprobe.heads.base import softmax
from dinoprobe.heads.closed import prepare
from dinoprobe.heads.lda import discriminants
from dinoprobe.heads.statistics import ClassStatistics, merged, statistics_of_folds
from dinoprobe.heads.temperature import fit_temperature

PROBES = [LDAProbe, RidgeProbe, PrototypeProbe]
SHAPES = [(400, 12, 4), (150, 30, 2), (60, 100, 5), (300, 5, 12)]


def noisy(n=400, d=12, k=4, seed=0, noise=1.5):
    """Standardised features, every class with at least two rows."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(k, d))[codes] + noise * rng.normal(size=(n, d))
    return StandardScaler().fit_transform(X), np.array([f"class {c:02d}" for c in codes])


def fold_of(n):
    return np.random.default_rng(5).integers(0, 4, n)


class TestLDA:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("shrinkage", [0.001, 0.2, 1.0])
    @pytest.mark.parametrize("solver", ["lsqr", "eigen"])
    def test_equals_scikit_learn(self, shape, shrinkage, solver):
        """Within rounding of the float32 weights."""
        if solver == "eigen" and shape[0] < shape[1]:
            pytest.skip("eigen refuses fewer rows than features")
        X, y = noisy(*shape)
        theirs = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage).fit(X, y)
        ours = LDAProbe(shrinkage=shrinkage, temperature=1).fit(X, y)
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)

    def test_equals_scikit_learn_in_float32_blocks(self, monkeypatch):
        monkeypatch.setattr(statistics_module, "SMALL_SIZE", 0)
        monkeypatch.setattr(statistics_module, "CHUNK_ROWS", 100)
        X, y = noisy(n=2000, d=40, k=10)
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01).fit(X, y)
        ours = LDAProbe(shrinkage=0.01, temperature=1).fit(X.astype(np.float32), y)
        assert (ours.predict(X) == theirs.predict(X)).mean() >= 0.999
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)

    def test_chooses_by_refits_of_the_folds(self):
        """Features are standardised over all rows, once."""
        X, y = noisy(noise=3)
        folds = fold_of(len(y))
        path = (0.01, 0.3, 1.0)
        probe = LDAProbe(path).fit(X, y, folds=folds)
        correct, loss = np.zeros(3), np.zeros(3)
        for fold in range(4):
            train, judged = folds != fold, folds == fold
            for column, shrinkage in enumerate(path):
                refit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
                P = refit.fit(X[train], y[train]).predict_proba(X[judged])
                own = P[np.arange(len(P)), np.searchsorted(refit.classes_, y[judged])]
                correct[column] += (refit.classes_[P.argmax(axis=1)] == y[judged]).sum()
                loss[column] -= np.log(own).sum()
        np.testing.assert_allclose(probe.cv_results_["accuracy"], correct / len(y), atol=1e-12)
        np.testing.assert_allclose(probe.cv_results_["log_loss"], loss / len(y), rtol=1e-5)
        assert probe.shrinkage_ == path[int(np.lexsort((loss, -correct))[0])]
        assert probe.selection_.startswith("4 given folds")

    @pytest.mark.parametrize("shape", SHAPES)
    def test_partial_fit_equals_fit(self, shape):
        X, y = noisy(*shape)
        options = {"shrinkage": 0.1, "temperature": 2.0}
        whole = LDAProbe(**options).fit(X, y)
        is_new = y == "class 01"
        start = np.flatnonzero(~is_new)[::2] if shape[2] > 2 else np.arange(0, len(y), 2)
        rest = np.setdiff1d(np.arange(len(y)), start)
        grown = LDAProbe(**options).fit(X[start], y[start]).partial_fit(X[rest], y[rest])
        assert grown.classes_.tolist() == whole.classes_.tolist()
        np.testing.assert_allclose(grown.predict_proba(X), whole.predict_proba(X), atol=1e-5)
        np.testing.assert_allclose(grown.coef_, whole.coef_, atol=1e-5 * np.abs(whole.coef_).max())

    def test_partial_fit_keeps_what_was_chosen(self):
        X, y = noisy()
        probe = LDAProbe().fit(X[:300], y[:300])
        chosen = probe.shrinkage_, probe.temperature_, probe.selection_
        probe.partial_fit(X[300:], y[300:])
        assert (probe.shrinkage_, probe.temperature_, probe.selection_) == chosen
        again = LDAProbe(shrinkage=chosen[0], temperature=chosen[1]).fit(X, y)
        np.testing.assert_allclose(probe.predict_proba(X), again.predict_proba(X), atol=1e-5)

    def test_partial_fit_keeps_its_own_rows(self):
        X, y = noisy(n=60, d=100)
        mine = X[:40].copy()
        probe = LDAProbe(shrinkage=0.1, temperature=1).fit(mine, y[:40])
        mine[:] = 0
        probe.partial_fit(X[40:], y[40:])
        whole = LDAProbe(shrinkage=0.1, temperature=1).fit(X, y)
        np.testing.assert_allclose(probe.predict_proba(X), whole.predict_proba(X), atol=1e-5)

    def test_partial_fit_from_nothing(self):
        X, y = noisy()
        probe = LDAProbe().partial_fit(X[:200], y[:200]).partial_fit(X[200:], y[200:])
        assert (probe.shrinkage_, probe.temperature_) == (0.1, 1.0)
        whole = LDAProbe(shrinkage=0.1, temperature=1).fit(X, y)
        np.testing.assert_allclose(probe.predict_proba(X), whole.predict_proba(X), atol=1e-5)

    def test_partial_fit_refuses(self):
        X, y = noisy()
        with pytest.raises(HeadError, match="not among its classes, the first is 'class 03'"):
            LDAProbe().partial_fit(X, y, classes=["class 00", "class 01", "class 02"])
        with pytest.raises(HeadError, match="at least 2 classes"):
            LDAProbe().partial_fit(X[:3], ["a"] * 3)
        with pytest.raises(ValueError, match="11 features"):
            LDAProbe().fit(X, y).partial_fit(X[:, :11], y)

    def test_one_row_a_class_is_not_too_sure(self):
        X, y = noisy(n=404, d=200, noise=4)
        rest = slice(4, None)
        first = np.unique(y, return_index=True)[1]
        probe = LDAProbe().fit(X[first], y[first])
        own = probe.predict_proba(X[rest])[np.arange(400), np.searchsorted(probe.classes_, y[rest])]
        assert -np.log(own).mean() < 1.5 * np.log(4)

    def test_equal_accuracy_goes_by_tempered_log_loss(self):
        """All strengths are right; at temperature 1 the least shrunk one has no loss at all."""
        X, y = noisy(n=60, d=100, noise=0.8)
        probe = LDAProbe().fit(X, y)
        assert (probe.cv_results_["accuracy"] == 1).all()
        assert probe.shrinkage_ > 0.05


class TestRidge:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("alpha", [0.01, 1, 1000])
    def test_equals_scikit_learn(self, shape, alpha):
        X, y = noisy(*shape)
        decision = RidgeClassifier(alpha=alpha).fit(X, y).decision_function(X)
        if decision.ndim == 1:
            decision = np.stack([-decision, decision], axis=1)
        ours = RidgeProbe(alpha=alpha, temperature=1).fit(X, y)
        np.testing.assert_allclose(ours.logits(X), decision, atol=1e-4)

    @pytest.mark.parametrize("shape", [(60, 8, 3), (40, 70, 4), (30, 29, 2)])
    def test_leave_one_out_equals_refits(self, shape):
        X, y = noisy(*shape, noise=2)
        alphas = (0.05, 2.0, 300.0)
        probe = RidgeProbe(alphas).fit(X, y)
        classes = np.unique(y)
        targets = np.where(y[:, None] == classes, 1.0, -1.0)
        scores = np.empty((3, *targets.shape))
        for row in range(len(y)):
            others = np.arange(len(y)) != row
            mean, center = X[others].mean(axis=0), targets[others].mean(axis=0)
            Z = X[others] - mean
            for column, alpha in enumerate(alphas):
                gram = Z.T @ Z + alpha * np.eye(len(mean))
                W = np.linalg.solve(gram, Z.T @ (targets[others] - center))
                scores[column, row] = (X[row] - mean) @ W + center
        accuracy = (classes[scores.argmax(axis=2)] == y).mean(axis=1)
        loss = np.square(scores - targets).sum(axis=2).mean(axis=1)
        np.testing.assert_allclose(probe.cv_results_["accuracy"], accuracy)
        np.testing.assert_allclose(probe.cv_results_["squared_loss"], loss, rtol=1e-6)
        best = int(np.lexsort((loss, -accuracy))[0])
        codes = np.searchsorted(classes, y)
        assert probe.alpha_ == alphas[best]
        expected = fit_temperature(scores[best], codes)
        assert probe.temperature_ == pytest.approx(expected, rel=1e-4)
        assert probe.selection_.startswith("leave-one-out scores")

    def test_leave_one_out_in_float32(self, monkeypatch):
        X, y = noisy(n=800, d=40, k=6, noise=3)
        exact = RidgeProbe().fit(X, y).cv_results_
        monkeypatch.setattr(statistics_module, "SMALL_SIZE", 0)
        monkeypatch.setattr(statistics_module, "CHUNK_ROWS", 100)
        coarse = RidgeProbe().fit(X.astype(np.float32), y).cv_results_
        np.testing.assert_allclose(coarse["squared_loss"], exact["squared_loss"], rtol=1e-4)
        np.testing.assert_allclose(coarse["accuracy"], exact["accuracy"], atol=2 / 800)

    def test_given_folds_equal_refits(self):
        X, y = noisy(noise=3)
        folds = fold_of(len(y))
        alphas = (0.1, 50.0)
        probe = RidgeProbe(alphas).fit(X, y, folds=folds)
        correct = [
            sum(
                RidgeClassifier(alpha=alpha)
                .fit(X[folds != fold], y[folds != fold])
                .score(X[folds == fold], y[folds == fold])
                * (folds == fold).sum()
                for fold in range(4)
            )
            for alpha in alphas
        ]
        np.testing.assert_allclose(probe.cv_results_["accuracy"] * len(y), correct)
        assert probe.selection_.startswith("4 given folds")

    def test_groups_are_not_split(self):
        X, y = noisy()
        assert RidgeProbe().fit(X, y, groups=[None] * len(y)).selection_.startswith("5 stratified")

    def test_no_more_rows_left_out_than_are_needed(self, monkeypatch):
        X, y = noisy(noise=3)
        monkeypatch.setattr(ridge_module, "JUDGED_ROWS", 50)
        accuracy = RidgeProbe().fit(X, y).cv_results_["accuracy"] * 50
        np.testing.assert_allclose(accuracy, accuracy.round(), atol=1e-9)

    def test_lone_row_does_not_judge(self):
        X, y = noisy(n=40)
        y[0] = "rare"
        probe = RidgeProbe().fit(X, y)
        assert probe.cv_results_["accuracy"].max() * 39 == pytest.approx(
            round(probe.cv_results_["accuracy"].max() * 39)
        )


class TestPrototype:
    def test_nearest_mean_by_cosine(self):
        X, y = noisy(k=7)
        means = np.stack([X[y == label].mean(axis=0) for label in np.unique(y)])
        nearest = pairwise_distances_argmin(X, means, metric="cosine")
        probe = PrototypeProbe().fit(X, y)
        assert (probe.predict(X) == np.unique(y)[nearest]).all()

    def test_score_is_the_cosine_times_the_length_of_the_row(self):
        X, y = noisy()
        probe = PrototypeProbe(temperature=0.5).fit(X, y)
        means = np.stack([X[y == label].mean(axis=0) for label in probe.classes_])
        size = np.sqrt(np.square(X).sum(axis=1).mean())
        np.testing.assert_allclose(probe.logits(X), X @ normalize(means).T / size / 0.5, atol=1e-5)

    def test_folds_judge_rows_by_the_means_of_others(self):
        X, y = noisy(n=80, noise=3)
        folds = fold_of(len(y))
        probe = PrototypeProbe().fit(X, y, folds=folds)
        correct = 0
        for fold in range(4):
            refit = PrototypeProbe(temperature=1).fit(X[folds != fold], y[folds != fold])
            correct += (refit.predict(X[folds == fold]) == y[folds == fold]).sum()
        assert probe.cv_results_["accuracy"][0] == pytest.approx(correct / len(y))
        assert probe.selection_ == "4 given folds"

    def test_one_shot(self):
        X, y = noisy(n=4)
        probe = PrototypeProbe().fit(X, y)
        assert (probe.predict(X) == y).all()
        assert probe.temperature_ == 0.07
        assert probe.selection_.startswith("default, 0.07: no class has rows")


@pytest.fixture(params=PROBES, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


class TestAll:
    def test_temperature_has_the_least_log_loss(self, kind):
        """Against scipy, on the scores of explicit refits of the folds."""
        X, y = noisy(n=600, noise=2.5)
        folds = fold_of(len(y))
        probe = kind().fit(X, y, folds=folds)
        fixed = {name: getattr(probe, f"{name}_") for name in kind.selects} | {"temperature": 1.0}
        scores = np.empty((len(y), 4))
        for fold in range(4):
            refit = kind(**fixed).fit(X[folds != fold], y[folds != fold])
            scores[folds == fold] = refit.logits(X[folds == fold])
        codes = np.searchsorted(probe.classes_, y)

        def loss(log_temperature):
            P = softmax(scores / np.exp(log_temperature))
            return -np.log(P[np.arange(len(y)), codes]).mean()

        best = np.exp(minimize_scalar(loss, bounds=(-6, 3), method="bounded").x)
        assert probe.temperature_ == pytest.approx(best, rel=0.05)

    @pytest.mark.parametrize("labels", [("no", "yes"), ("Ä", "b", "猫")], ids=len)
    def test_round_trip(self, kind, labels):
        X, y = noisy(k=len(labels))
        y = np.array(labels, dtype=object)[np.unique(y, return_inverse=True)[1]]
        probe = kind().fit(X, y)
        config, arrays = to_state(probe)
        assert (config["kind"], set(arrays)) == ("linear", {"weight", "bias"})
        loaded = from_state(json.loads(json.dumps(config)), arrays)
        assert np.array_equal(loaded.predict_proba(X), probe.predict_proba(X))

    def test_huge_offset(self, kind):
        """float32 holds 1e4 to 1e-3, a thousandth of the deviation here."""
        X, y = noisy(n=400, noise=0.8)
        far = (X + 1e4).astype(np.float32)
        near = kind().fit(X, y)
        probe = kind().fit(far, y)
        assert (probe.predict(far) == y).mean() > (near.predict(X) == y).mean() - 0.02
        assert np.isfinite(probe.predict_proba(far)).all()

    def test_units_of_features_do_not_matter(self, kind):
        if kind is PrototypeProbe:
            pytest.skip("cosines depend on units")
        X, y = noisy()
        factor = 10.0 ** np.linspace(-6, 6, X.shape[1])
        np.testing.assert_allclose(
            kind().fit(X * factor, y).predict_proba(X * factor),
            kind().fit(X, y).predict_proba(X),
            atol=1e-4,
        )

    @pytest.mark.parametrize("shape", [(400, 12, 4), (30, 60, 4)])
    def test_constant_features_change_nothing(self, kind, shape):
        X, y = noisy(*shape)
        wide = np.hstack([X, np.full((len(X), 2), 7.25), np.zeros((len(X), 1))])
        probe = kind().fit(wide, y)
        if kind is not PrototypeProbe:
            assert not probe.coef_[:, -3:].any()
            np.testing.assert_allclose(
                probe.predict_proba(wide), kind().fit(X, y).predict_proba(X), atol=1e-4
            )
        assert np.isfinite(probe.predict_proba(wide)).all()

    def test_only_constant_features(self, kind):
        y = np.array(["a", "b", "b", "b"] * 5)
        P = kind().fit(np.ones((20, 3)), y).predict_proba(np.ones((2, 3)))
        assert np.isfinite(P).all()
        if kind is not PrototypeProbe:
            assert (P[:, 1] > 0.5).all()

    @pytest.mark.parametrize("shape", [(90, 2, 30), (30, 60, 15)])
    def test_more_classes_than_dimensions_or_two_rows_a_class(self, kind, shape):
        X, y = noisy(*shape, noise=0.1)
        probe = kind().fit(X, y)
        chance = 1 / shape[2]
        assert (probe.predict(X) == y).mean() > 3 * chance

    def test_class_with_a_single_row(self, kind):
        X, y = noisy(noise=0.5)
        y[0], X[0] = "rare", 6.0
        probe = kind().fit(X, y)
        assert "rare" in probe.classes_
        assert np.isfinite(probe.coef_).all()
        assert np.isfinite(probe.intercept_).all()
        if kind is not RidgeProbe:
            assert probe.predict(X[:1]) == ["rare"]

    def test_class_that_one_fold_holds_alone(self, kind):
        X, y = noisy(noise=0.5)
        folds = np.where(y == "class 00", 0, 1 + np.arange(len(y)) % 3)
        probe = kind().fit(X, y, folds=folds)
        assert probe.selection_.startswith("3 given folds")
        assert (probe.predict(X) == y).mean() > 0.9
        others = folds != 0
        alone = kind().fit(X[others], y[others], folds=folds[others])
        assert probe.temperature_ < 20 * alone.temperature_

    def test_folds_that_can_not_judge(self, kind):
        X, y = noisy()
        probe = kind().fit(X, y, folds=np.full(len(y), -1))
        assert probe.selection_.startswith("default")
        assert probe.cv_results_ is None
        assert (probe.predict(X) == y).mean() > 0.8

    def test_one_row_of_each_class(self, kind):
        X, y = noisy(n=4)
        probe = kind().fit(X, y)
        assert (probe.predict(X) == y).all()
        assert probe.selection_.startswith("default")
        assert probe.cv_results_ is None

    def test_duplicate_rows(self, kind):
        X, y = noisy(n=40, d=50)
        probe = kind().fit(np.repeat(X, 5, axis=0), np.repeat(y, 5))
        assert (probe.predict(X) == y).all()
        assert np.isfinite(probe.temperature_)

    def test_given_options_skip_the_choice(self, kind):
        X, y = noisy()
        options = dict.fromkeys(kind.selects, 0.5)
        probe = kind(**options).fit(X, y)
        assert probe.selection_ == "given"
        assert probe.cv_results_ is None
        assert all(getattr(probe, f"{name}_") == 0.5 for name in options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"temperature": 0}, "temperature is 0; expected"), ({"cv": 1}, "cv is 1; expected")],
    )
    def test_wrong_options(self, kind, options, message):
        with pytest.raises(HeadError, match=message):
            kind(**options).fit(*noisy())

    def test_no_more_folds_than_are_needed(self, kind, monkeypatch):
        X, y = noisy(noise=3)
        folds = np.arange(len(y)) % 5
        first = np.where(folds == 0, 0, -1)
        monkeypatch.setattr(closed_module, "JUDGED_ROWS", 81)
        assert kind().fit(X, y, folds=folds).selection_.startswith("2 of 5 given folds")
        monkeypatch.setattr(closed_module, "JUDGED_ROWS", 80)
        folds = 10**9 * folds
        probe = kind().fit(X, y, folds=folds)
        assert probe.selection_.startswith("1 of 5 given folds")
        alone = kind().fit(X, y, folds=first)
        assert probe.selection_.replace("1 of 5 given folds", "1 given fold") == alone.selection_
        np.testing.assert_allclose(probe.coef_, alone.coef_, rtol=1e-5)

    def test_few_kept_scores(self, kind, monkeypatch):
        """The temperature of evenly spaced rows is close to that of all."""
        X, y = noisy(n=3000, noise=2.5)
        every = kind().fit(X, y).temperature_
        monkeypatch.setattr(closed_module, "KEPT_ROWS", 1000)
        some = kind().fit(X, y).temperature_
        assert some != every
        assert some == pytest.approx(every, rel=0.2)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (LDAProbe(shrinkage=0.0), r"shrinkage is \[0.0\]; expected numbers above 0, up to 1"),
        (LDAProbe((0.1, 1.5)), r"shrinkage is \[0.1, 1.5\]"),
        (LDAProbe(()), r"shrinkage is \[\]"),
        (RidgeProbe(alpha=-1.0), r"alpha is \[-1.0\]; expected positive, finite numbers"),
        (RidgeProbe(alphas=(1, float("inf"))), "alpha is"),
    ],
)
def test_wrong_strengths(probe, message):
    with pytest.raises(HeadError, match=message):
        probe.fit(*noisy())


class TestStatistics:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 1000), k=st.integers(1, 5), far=st.sampled_from([0.0, 3.0, 1e4]))
    def test_parts_merge_whatever_their_pivots(self, seed, k, far):
        rng = np.random.default_rng(seed)
        X, codes = far + rng.normal(size=(50, 6)), rng.integers(0, k, 50)
        whole = ClassStatistics.around(X, k).add(X, codes)
        grown = ClassStatistics.around(X[:7] * 2, k).add(X[:20], codes[:20])
        grown.merge(ClassStatistics.around(X[40:], k).add(X[20:], codes[20:]))
        moved = grown.moved(whole.pivot, whole.unit)
        np.testing.assert_array_equal(moved.counts, whole.counts)
        np.testing.assert_allclose(moved.sums, whole.sums, atol=1e-6)
        np.testing.assert_allclose(moved.gram, whole.gram, atol=1e-8 * max(far, 1))

    def test_fold_subtracted_equals_its_rows_left_out(self):
        X, y = noisy()
        codes = np.unique(y, return_inverse=True)[1]
        folds = fold_of(len(y))
        like = ClassStatistics.around(X, 4)
        parts = statistics_of_folds(X, codes, folds, like=like)
        for fold, part in parts.items():
            rest = merged(parts).without(part)
            rows = folds != fold
            expected = ClassStatistics(like.pivot, like.unit, 4).add(X[rows], codes[rows])
            np.testing.assert_array_equal(rest.counts, expected.counts)
            np.testing.assert_allclose(rest.sums, expected.sums, atol=1e-9)
            np.testing.assert_allclose(rest.within(), expected.within(), atol=1e-9)

    def test_covariance_of_float32_blocks_far_from_zero(self, monkeypatch):
        """float64 on the same rows is the measure; float32 products around zero are off by 8."""
        monkeypatch.setattr(statistics_module, "SMALL_SIZE", 0)
        rng = np.random.default_rng(0)
        X = (1e4 + rng.normal(size=(20_000, 8))).astype(np.float32)
        codes = rng.integers(0, 3, len(X))
        found = ClassStatistics.around(X, 3).add(X, codes)
        exact = X.astype(np.float64)
        center, scale = found.standardization()
        np.testing.assert_allclose(center, exact.mean(axis=0), rtol=1e-9)
        within = sum(
            (codes == c).sum() * np.cov(exact[codes == c].T, bias=True) for c in range(3)
        ) / len(X)
        np.testing.assert_allclose(
            found.moved(center, scale).within() * np.outer(scale, scale), within, atol=1e-6
        )

    @pytest.mark.parametrize("shape", [(200, 10, 3), (40, 90, 3)])
    def test_design_leads_back_to_features(self, shape):
        """The discriminants of the design, on rows as they came, are those of its own rows."""
        X, y = noisy(*shape)
        X = 5 + X * np.linspace(0.1, 9, shape[1])
        codes = np.unique(y, return_inverse=True)[1]
        prepared = prepare(X, codes, 3, np.full(len(y), -1))
        weight, intercept = discriminants(prepared.total, [0.1], prepared.design.varying)[0]
        inside = prepared.design.rows(np.arange(len(y))) @ weight + intercept
        outside, bias = prepared.design.to_feature_space(weight, intercept)
        np.testing.assert_allclose(X @ outside.T + bias, inside, atol=1e-4)


class TestTemperature:
    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 1000), true=st.floats(0.05, 20), scale=st.sampled_from([1e-3, 1, 1e4])
    )
    def test_finds_what_labels_were_drawn_with(self, seed, true, scale):
        rng = np.random.default_rng(seed)
        z = 2 * rng.normal(size=(4000, 4))
        codes = (softmax(z).cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
        assert fit_temperature(z * true * scale, codes) == pytest.approx(true * scale, rel=0.15)

    def test_rows_without_a_mistake(self):
        assert 0 < fit_temperature(np.eye(5) * 3, np.arange(5)) < 3

    def test_rows_that_are_all_wrong_become_flat(self):
        z = np.eye(4)
        assert fit_temperature(z, (np.arange(4) + 1) % 4) > 100

    def test_scores_that_do_not_differ(self):
        assert fit_temperature(np.ones((6, 3)), np.arange(6) % 3) == 1

    def test_class_that_was_not_trained_on(self):
        rng = np.random.default_rng(0)
        z = rng.normal(size=(500, 3))
        codes = (softmax(2 * z).cumsum(axis=1) > rng.random((500, 1))).argmax(axis=1)
        more = np.hstack([z, np.full((500, 1), -np.inf)])
        assert fit_temperature(more, codes) == pytest.approx(fit_temperature(z, codes), rel=1e-6)
