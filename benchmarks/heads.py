"""Heads against scikit-learn on made features, as JSON on stdout.

    python benchmarks/heads.py [--only NAME] [--full] [--json]

`lda` chooses among 12 shrinkages on 5 folds and fits a temperature, beside one fit of
scikit-learn's with its automatic shrinkage. `ridge` judges 50 strengths by leave-one-out, as its
peer does. `logistic-path` solves 8 strengths, warm, beside a fit for each. `dinov3-logreg` solves
45 beside scikit-learn as facebookresearch/dinov3 calls it (float64, tol 1e-12), which fits every
fourth of them: its seconds are scaled to all. `knn` fits and predicts, beside scikit-learn's brute
force in float32 and, where it is installed, faiss's flat index. `linear-grid` trains 13 rates for
an epoch and takes the best on a tenth of the rows, beside the tutorial's loop once for each rate:
`ratio_to_tutorial`. `memory` is the peak of LogisticProbe's choice and fit, and what is left of it
without the workspace: 6 bytes a row and class, and 100 MB for libraries and blocks. Sides take
turns after a small fit of each, and the median round counts. `ratio_to_sklearn` is peer_seconds /
seconds; `objective_gap` the largest (ours - theirs) / theirs over the strengths, below 0 where ours
is the lower minimum. Without --json a line an entry is printed. 5,000 x 256 features of 12 classes;
with --full 50,000 x 768 of 100, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jobs import machine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier

from dinoprobe.heads import KNNProbe, LDAProbe, LinearGridProbe, LogisticProbe, RidgeProbe
from dinoprobe.heads.axes import standardization
from dinoprobe.heads.base import softmax
from dinoprobe.heads.grid_training import INITIAL_DEVIATION
from dinoprobe.heads.logistic import SELECTION_TOL
from dinoprobe.heads.problem import prepare
from dinoprobe.heads.solver import solve_path, to_feature_space
from dinoprobe.heads.threads import one_torch_thread
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dinoprobe.heads.problem import Problem
    from dinoprobe.heads.rows import Chunk

    Floats = npt.NDArray[np.floating]
    Side = Callable[["Data"], Any]

MODES, MODE_SPREAD, LABEL_NOISE = 3, 0.4, 0.03
ALPHAS = np.logspace(-3, 3, 50)
STRENGTHS = np.logspace(-4, -0.5, 8)
DINOV3_STRENGTHS = np.logspace(-6, 5, 45)
PEER_TOL, PEER_ITERATIONS, PEER_EVERY = 1e-4, 1000, 4
NEIGHBORS = 20
GRID_EPOCHS = 1
WORKSPACE_BYTES = 100_000_000


class Shape(NamedTuple):
    """Rows to train and to test on, features, classes; how far classes lie apart."""

    rows: int
    test_rows: int
    features: int
    classes: int
    separation: float


DEFAULT = Shape(5_000, 2_000, 256, 12, 0.52)
FULL = Shape(50_000, 10_000, 768, 100, 0.52)
SHAPES = {  # of entries with their own
    "dinov3-logreg": (Shape(1_000, 1_000, 64, 8, 0.5), Shape(20_000, 5_000, 384, 10, 0.4)),
}
SMALL = Shape(300, 100, 16, 4, 1.0)


class Data(NamedTuple):
    """Standardised float32 features and labels, to train and to test on."""

    X: Floats
    y: npt.NDArray[np.str_]
    X_test: Floats
    y_test: npt.NDArray[np.str_]


class Measured(NamedTuple):
    """Median seconds of both sides, and what each fitted."""

    seconds: float
    peer_seconds: float
    rounds: int
    ours: Any
    peer: Any


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(ENTRIES), help="one entry")
    parser.add_argument("--full", action="store_true", help="50,000 rows, 768 features")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    options = parser.parse_args()
    entries: dict[str, Any] = {}
    shape: Shape | None = None
    data: Data | None = None
    for name in [options.only] if options.only else ENTRIES:
        before, shape = shape, SHAPES.get(name, (DEFAULT, FULL))[options.full]
        data = data if shape == before and data else made(shape, seed=0)
        entries[name] = {**ENTRIES[name](data, budget_s(options)), "shapes": shape._asdict()}
        if not options.json:
            print(line(name, entries[name]), flush=True)
    if options.json:
        document = {"command": f"python {' '.join(['benchmarks/heads.py', *sys.argv[1:]])}"}
        document |= {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}
        print(json.dumps({**document, "versions": versions(), "entries": entries}, indent=2))


def budget_s(options: argparse.Namespace) -> float:
    """No new round of an entry begins after so many seconds."""
    return 60.0 if options.full else 5.0


def made(shape: Shape, *, seed: int) -> Data:
    """Features of Gaussian modes in falling spectra, 3 % of the labels wrong.

    Within classes the spectrum is flatter than between them, and a hidden rotation mixes it, as
    in features of a network. `separation` is set so that linear heads reach 80 to 90 %.
    """
    rng = np.random.default_rng(seed)
    n, d, k = shape.rows + shape.test_rows, shape.features, shape.classes
    axis = np.arange(1, d + 1, dtype=np.float32)
    means = rng.normal(size=(k, 1, d)) + MODE_SPREAD * rng.normal(size=(k, MODES, d))
    codes, modes = rng.integers(0, k, n), rng.integers(0, MODES, n)
    X = rng.standard_normal((n, d), dtype=np.float32) * axis**-0.25
    X += (shape.separation * means * axis**-0.5).astype(np.float32)[codes, modes]
    X = X @ np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
    wrong = rng.random(n) < LABEL_NOISE
    codes[wrong] = rng.integers(0, k, int(wrong.sum()))
    y = np.array([f"class {code:03d}" for code in range(k)])[codes]
    mean, scale = standardization(X[: shape.rows])
    X = ((X - mean) / scale).astype(np.float32)
    return Data(X[: shape.rows], y[: shape.rows], X[shape.rows :], y[shape.rows :])


def in_turn(ours: Side, peer: Side, data: Data, budget: float, *, rounds: int = 5) -> Measured:
    """Both sides on the data, round after round, each once on little before."""
    sides = {"ours": ours, "peer": peer}
    seconds, fitted = all_in_turn(sides, data, budget, rounds=rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Measured(medians["ours"], medians["peer"], len(seconds["peer"]), **fitted)


def all_in_turn(
    sides: dict[str, Side], data: Data, budget: float, *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each side in each round, and what it made in the last one."""
    small = made(SMALL, seed=1)
    for side in sides.values():
        side(small)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    fitted: dict[str, Any] = {}
    started = time.perf_counter()
    done = 0
    while done < rounds and (not fitted or time.perf_counter() - started < budget):
        for name, side in sides.items():
            start = time.perf_counter()
            fitted[name] = side(data)
            seconds[name].append(time.perf_counter() - start)
        done += 1
    return seconds, fitted


def entry(measured: Measured, accuracies: tuple[float, float], gap: float | None) -> dict[str, Any]:
    """What is reported of a measurement."""
    return {
        "seconds": measured.seconds,
        "peer_seconds": measured.peer_seconds,
        "ratio_to_sklearn": measured.peer_seconds / measured.seconds,
        "objective_gap": gap,
        "accuracy": accuracies[0],
        "peer_accuracy": accuracies[1],
        "rounds": measured.rounds,
    }


def lda(data: Data, budget: float) -> dict[str, Any]:
    """The whole choice of LDAProbe, and one fit of scikit-learn's."""
    measured = in_turn(
        lambda data: LDAProbe().fit(data.X, data.y),
        lambda data: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(
            data.X, data.y
        ),
        data,
        budget,
    )
    return entry(measured, scores(measured, data), None)


def ridge(data: Data, budget: float) -> dict[str, Any]:
    """50 strengths by leave-one-out on both sides."""
    measured = in_turn(
        lambda data: RidgeProbe(ALPHAS.tolist()).fit(data.X, data.y),
        lambda data: RidgeClassifierCV(ALPHAS).fit(data.X, data.y),
        data,
        budget,
    )
    return entry(measured, scores(measured, data), None)


def logistic_path(data: Data, budget: float) -> dict[str, Any]:
    """8 strengths: one warm path, and a fit for each. The accuracy is the best of the path.

    Beside scikit-learn as people call it stand the same fits each begun at the one before, and
    Intel's extension where it is installed.
    """
    sides: dict[str, Side] = {
        "ours": partial(own_path, Cs=STRENGTHS),
        "peer": partial(peer_path, Cs=STRENGTHS, options={"tol": PEER_TOL}),
        "warm": partial(peer_path, Cs=STRENGTHS, options={"tol": PEER_TOL}, is_warm=True),
    }
    if find_spec("sklearnex"):
        sides["intelex"] = partial(
            peer_path, Cs=STRENGTHS, options={"tol": PEER_TOL}, is_intel=True
        )
    seconds, paths = all_in_turn(sides, data, budget, rounds=3)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    measured = Measured(medians["ours"], medians["peer"], len(seconds["ours"]), None, None)
    found = judged_paths(data, STRENGTHS, paths["ours"], paths["peer"], measured)
    found["ratio_to_warm_starts"] = medians["warm"] / medians["ours"]
    found["ratio_to_intelex"] = medians.get("intelex", math.nan) / medians["ours"]
    if "intelex" not in medians:
        found["ratio_to_intelex"] = None
    return {**found, "seconds_of_all": medians, **bound(data, medians["ours"])}


def bound(data: Data, seconds: float) -> dict[str, Any]:
    """What the products of a path cost at this machine's rate, and how much of it was reached."""
    classes, codes = np.unique(data.y, return_inverse=True)
    problem = prepare(data.X, codes, len(classes))
    solve_path(problem, STRENGTHS.tolist(), tol=SELECTION_TOL, max_iter=PEER_ITERATIONS)
    flops = 4.0 * data.X.size * len(classes) * problem.lanes.passes
    rate = products_per_second(problem)
    return {
        "passes": problem.lanes.passes,
        "product_flops_per_second": rate,
        "bound_seconds": flops / rate,
        "share_of_bound": flops / rate / seconds,
    }


def products_per_second(problem: Problem) -> float:
    """FLOPs a second of the products of a pass alone, by all threads at once."""
    weights = problem.start[:, :-1].to(problem.coarse)
    flops = 0.0

    def products(lane: list[Chunk]) -> float:
        done = 0.0
        for chunk in lane:
            scores = weights @ chunk.kept.T
            scores @ chunk.kept
            done += 4.0 * chunk.kept.numel() * len(weights)
        return done

    with problem.lanes.running():
        problem.lanes.map(products)
        start = time.perf_counter()
        for _ in range(5):
            flops += sum(problem.lanes.map(products))
        return flops / (time.perf_counter() - start)


def dinov3_logreg(data: Data, budget: float) -> dict[str, Any]:
    """45 strengths from 1e-6 to 1e5; scikit-learn's side fits some of them."""
    some = DINOV3_STRENGTHS[::PEER_EVERY]

    def precise_path(given: Data) -> list[tuple[Floats, Floats]]:
        precise = given._replace(X=given.X.astype(np.float64))
        return peer_path(precise, some, {"tol": 1e-12})

    measured = in_turn(partial(own_path, Cs=DINOV3_STRENGTHS), precise_path, data, budget, rounds=1)
    scale = len(DINOV3_STRENGTHS) / len(some)
    measured = measured._replace(peer_seconds=measured.peer_seconds * scale)
    ours = measured.ours[::PEER_EVERY]
    found = judged_paths(data, some, ours, measured.peer, measured)
    return {**found, "peer_strengths": len(some)}


def judged_paths(
    data: Data, Cs: Floats, ours: Any, theirs: Any, measured: Measured
) -> dict[str, Any]:
    """The largest gap of the objectives along two paths, and the best accuracy of each."""
    codes = np.unique(data.y, return_inverse=True)[1]
    gaps, correct = [], []
    for C, *both in zip(Cs, ours, theirs, strict=True):
        values = [objective(data.X, codes, C, *each) for each in both]
        gaps.append(values[0] / values[1] - 1)
        correct.append([accuracy(data, *each) for each in both])
    best = np.max(correct, axis=0)
    return entry(measured, (float(best[0]), float(best[1])), max(gaps))


def memory(data: Data, budget: float) -> dict[str, Any]:  # noqa: ARG001 - an entry's arguments
    """Peak memory of the whole choice and fit of LogisticProbe beyond features and labels."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")  # the peak begins anew
    before = status_bytes("VmRSS")
    start = time.perf_counter()
    LogisticProbe().fit(data.X, data.y)
    seconds = time.perf_counter() - start
    peak = status_bytes("VmHWM") - before
    features = data.X.nbytes
    workspace = 6 * len(data.X) * len(np.unique(data.y)) + WORKSPACE_BYTES
    return {
        "seconds": seconds,
        "features_bytes": features,
        "workspace_bytes": workspace,
        "peak_bytes_beyond_features": peak,
        "peak_of_features": (peak + features) / features,
        "without_workspace_of_features": (peak + features - workspace) / features,
    }


def status_bytes(name: str) -> int:
    """A size that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def knn(data: Data, budget: float) -> dict[str, Any]:
    """From features to predictions of the test rows, on all sides with every core."""
    sides: dict[str, Side] = {
        "ours": partial(predictions, KNNProbe(NEIGHBORS)),
        "peer": partial(
            predictions, KNeighborsClassifier(NEIGHBORS, algorithm="brute", metric="cosine")
        ),
    }
    if find_spec("faiss"):
        sides["faiss"] = faiss_predictions
    seconds, answers = all_in_turn(sides, data, budget, rounds=5)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    right = {name: float((answer == data.y_test).mean()) for name, answer in answers.items()}
    measured = Measured(medians["ours"], medians["peer"], len(seconds["ours"]), None, None)
    found = entry(measured, (right["ours"], right["peer"]), None)
    faiss_seconds = medians.get("faiss")
    ratio = None if faiss_seconds is None else faiss_seconds / found["seconds"]
    return {**found, "ratio_to_faiss": ratio, "faiss_accuracy": right.get("faiss")}


def predictions(classifier: Any, data: Data) -> Any:
    """The classifier's labels of the test rows."""
    return classifier.fit(data.X, data.y).predict(data.X_test)


def faiss_predictions(data: Data) -> Any:
    """By faiss's flat index of rows of length 1, with KNNProbe's weights for the votes."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count())
    rows, queries = data.X.copy(), data.X_test.copy()
    faiss.normalize_L2(rows)
    faiss.normalize_L2(queries)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    similarity, found = index.search(queries, NEIGHBORS)
    classes, codes = np.unique(data.y, return_inverse=True)
    votes = np.zeros((len(queries), len(classes)))
    weights = np.exp((similarity - similarity[:, :1]) / KNNProbe().temperature)
    np.add.at(votes, (np.arange(len(queries))[:, None], codes[found]), weights)
    return classes[votes.argmax(axis=1)]


def linear_grid(data: Data, budget: float) -> dict[str, Any]:
    """13 rates at once, and one after the other. All take the best on the same held-out rows.

    The loop runs with torch's own number of threads and with one; the faster counts.
    """
    sides: dict[str, Side] = {
        "ours": own_grid,
        "loop": tutorial_grid,
        "loop_one_thread": partial(on_one_thread, tutorial_grid),
    }
    seconds, answers = all_in_turn(sides, data, budget, rounds=3)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peer = min("loop", "loop_one_thread", key=medians.__getitem__)
    right = {name: float((answer == data.y_test).mean()) for name, answer in answers.items()}
    measured = Measured(medians["ours"], medians[peer], len(seconds["ours"]), None, None)
    found = entry(measured, (right["ours"], right[peer]), None)
    found["ratio_to_tutorial"] = found.pop("ratio_to_sklearn")
    return {**found, "peer": peer, "seconds_of_all": medians}


def on_one_thread(side: Side, data: Data) -> Any:
    """The side, with one thread of torch."""
    with one_torch_thread():
        return side(data)


def own_grid(data: Data) -> Any:
    """Labels of the test rows by the best of the grid."""
    folds = np.where(held_out(data), 0, -1)
    probe = LinearGridProbe(epochs=GRID_EPOCHS, refit=False)
    return probe.fit(data.X, data.y, folds=folds).predict(data.X_test)


def tutorial_grid(data: Data) -> Any:
    """The same of the tutorial's loop: a layer, a loader, an optimiser and a scheduler a rate."""
    classes, codes = np.unique(data.y, return_inverse=True)
    validates = held_out(data)
    X, targets = torch.from_numpy(data.X), torch.from_numpy(codes)
    rows = torch.utils.data.TensorDataset(X[~validates], targets[~validates])
    best: tuple[float, Any] = (-1.0, None)
    for lr in LinearGridProbe().learning_rates():
        torch.manual_seed(0)
        layer = tutorial_layer(rows, len(classes), lr)
        with torch.no_grad():
            right = (layer(X[validates]).argmax(1) == targets[validates]).double().mean()
            best = max(best, (float(right), layer), key=lambda pair: pair[0])
    with torch.no_grad():
        return classes[best[1](torch.from_numpy(data.X_test)).argmax(1).numpy()]


def tutorial_layer(rows: Any, class_count: int, lr: float) -> torch.nn.Linear:
    """One layer by one rate."""
    layer = torch.nn.Linear(rows.tensors[0].shape[1], class_count)
    torch.nn.init.normal_(layer.weight, 0, INITIAL_DEVIATION)
    torch.nn.init.zeros_(layer.bias)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=LinearGridProbe().batch_size, shuffle=True
    )
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    steps = GRID_EPOCHS * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(GRID_EPOCHS):
        for features, targets in loader:
            optimizer.zero_grad()
            loss(layer(features), targets).backward()
            optimizer.step()
            schedule.step()
    return layer


def held_out(data: Data) -> Any:
    """A tenth of the rows to train on, as a mask."""
    return np.arange(len(data.X)) % 10 == 0


def own_path(data: Data, Cs: Floats) -> list[tuple[Floats, Floats]]:
    """Weight `(k, d)` and intercept `(k,)` of each strength, as LogisticProbe judges them."""
    classes, codes = np.unique(data.y, return_inverse=True)
    problem = prepare(data.X, codes, len(classes))
    path = solve_path(problem, Cs.tolist(), tol=SELECTION_TOL, max_iter=PEER_ITERATIONS)
    return [to_feature_space(problem, solution) for solution in path]


def peer_path(
    data: Data,
    Cs: Floats,
    options: dict[str, Any],
    *,
    is_warm: bool = False,
    is_intel: bool = False,
) -> list[tuple[Floats, Floats]]:
    """The same of scikit-learn, lbfgs, in the precision of the features."""
    kind = import_module("sklearnex.linear_model").LogisticRegression if is_intel else None
    kind = kind or LogisticRegression
    warm = kind(max_iter=PEER_ITERATIONS, warm_start=True, **options)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for C in Cs:
            peer = warm if is_warm else kind(max_iter=PEER_ITERATIONS, **options)
            peer.set_params(C=C)
            peer.fit(data.X, data.y)
            found.append((peer.coef_.copy(), peer.intercept_.copy()))
    return found


def objective(X: Floats, codes: Any, C: float, weight: Floats, intercept: Floats) -> float:
    """Mean cross-entropy + |W|² / (2 C n), in float64."""
    P = softmax(X @ weight.T.astype(np.float64) + intercept)
    loss = -np.log(np.maximum(P[np.arange(len(codes)), codes], 1e-300)).mean()
    return float(loss + np.square(weight, dtype=np.float64).sum() / (2 * C * len(codes)))


def accuracy(data: Data, weight: Floats, intercept: Floats) -> float:
    """Of a linear head on the test rows."""
    codes = (data.X_test @ weight.T + intercept).argmax(axis=1)
    return float((np.unique(data.y)[codes] == data.y_test).mean())


def scores(measured: Measured, data: Data) -> tuple[float, float]:
    """Accuracy of both sides on the test rows."""
    ours, peer = measured.ours, measured.peer
    return (
        float((ours.predict(data.X_test) == data.y_test).mean()),
        float((peer.predict(data.X_test) == data.y_test).mean()),
    )


def line(name: str, found: dict[str, Any]) -> str:
    """An entry for reading."""
    if "peak_of_features" in found:
        beyond, features = (
            found[key] / 1e6 for key in ("peak_bytes_beyond_features", "features_bytes")
        )
        return f"{name}: {beyond:.0f} MB beyond the {features:.0f} MB of features"
    gap = "" if found["objective_gap"] is None else f", gap {found['objective_gap']:.1e}"
    return (
        f"{name}: {found['seconds']:.2f} s, peer {found['peer_seconds']:.2f} s, "
        f"{found['peer_seconds'] / found['seconds']:.1f} x, accuracy {found['accuracy']:.4f} and "
        f"{found['peer_accuracy']:.4f}{gap}, {found['rounds']} rounds"
    )


ENTRIES: dict[str, Callable[[Data, float], dict[str, Any]]] = {
    "knn": knn,
    "lda": lda,
    "linear-grid": linear_grid,
    "ridge": ridge,
    "logistic-path": logistic_path,
    "dinov3-logreg": dinov3_logreg,
    "memory": memory,
}


if __name__ == "__main__":
    main()
