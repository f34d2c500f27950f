"""Logistic regression that picks its own strength.

Validation folds judge every strength of a path, all rows are fitted again with the best one. A path
ends where two strengths in a row were worse than the best before, in accuracy and in log loss:
weaker regularisation only costs more from there. Folds run in threads of their own while there are
as many as cores.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from dinoprobe.errors import HeadError
from dinoprobe.heads.base import LinearBase
from dinoprobe.heads.closed import few_folds, in_words, log_loss_sums, some_weights, total_weight
from dinoprobe.heads.folds import assign_folds, check_fold_count, split_folds
from dinoprobe.heads.problem import prepare
from dinoprobe.heads.rows import Standardized
from dinoprobe.heads.selection import best_of, check_rule, select, standard_errors
from dinoprobe.heads.selection import in_words as rule_in_words
from dinoprobe.heads.solver import solve, solve_path, to_feature_space
from dinoprobe.heads.statistics import chunks
from dinoprobe.heads.threads import one_blas_thread, one_torch_thread
from dinoprobe.heads.training import training_rows
from dinoprobe.heads.weights import check_class_weight
from dinoprobe.mapped import folder_of
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s
    from dinoprobe.heads.problem import Problem
    from dinoprobe.heads.solver import Solution
    from dinoprobe.heads.training import TrainingRows
    from dinoprobe.heads.weights import ClassWeight

DEFAULT_C = 0.1
"""Where folds can not choose. With few rows in many dimensions any C from 0.01 up interpolates."""
SELECTION_TOL, SELECTION_TOL_EXACT = 1e-4, 1e-6
"""At which strengths are judged, by coarse and by exact products."""
PATIENCE = 2
FOLD_MEMORY_BYTES = 8 << 30


class LogisticProbe(LinearBase):
    """L2-penalised multinomial logistic regression, fitted to convergence.

    Minimises mean cross-entropy + |W|² / (2 C n) over features that are standardised inside (as
    they come with `standardize=False`), the intercept unpenalised; W has one row for each class,
    also for two classes, where C counts twice as much as in scikit-learn's `LogisticRegression`.
    With weights the mean is weighted, and n their sum. `C` skips the selection; `Cs` None are 12
    half decades from 1e-4 to 31.6, of which the most accurate is taken, or with `rule` "one-se" the
    smallest within one standard error of it. `tol` is the decrease, as a share of the objective,
    that a quadratic model still sees where the fit ends. `device` is where the products run ("cpu",
    "cuda"); bfloat16 is used on the way, not in the end.

    After fit: `C_`; `selection_`, how it was chosen, in words; `cv_results_`, arrays `C`,
    `accuracy`, `log_loss`, `standard_error` (of how far each is behind the best) over the rows of
    the first folds that hold 10,000, for the strengths up to where accuracy and log loss got worse
    twice (None without a selection); `n_iter_`, steps of the final fit;
    `gap_`, what was left to `tol`; `converged_`, whether that was met within `max_iter`, or all but
    1e-4 where rounding ends the fit (a ConvergenceWarning says when not); `coef_` and `intercept_`
    for features as they come, the standardisation folded in.
    """

    selects = ("C",)

    def __init__(  # noqa: PLR0913 - each is a choice of the user's
        self,
        Cs: Sequence[float] | None = None,
        *,
        C: float | None = None,
        rule: str = "best",
        standardize: bool = True,
        class_weight: ClassWeight = None,
        cv: int | Any = 5,
        random_state: int = 0,
        tol: float = 1e-8,
        max_iter: int = 1000,
        device: str = "cpu",
    ) -> None:
        self.Cs = Cs
        self.C = C
        self.rule = rule
        self.standardize = standardize
        self.class_weight = class_weight
        self.cv = cv
        self.random_state = random_state
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        groups: Sequence[Any] | None = None,
        folds: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Choose the strength and fit all rows with it.

        `folds` are the validation fold of each row, -1 for a row that is always trained on; without
        them `cv` stratified folds are dealt, rows of one group together. `cv` also takes
        scikit-learn's splits. `sample_weight` says how often each row counts.
        """
        Cs = self._strengths()
        rows = training_rows(self, X, y, sample_weight, groups=groups, folds=folds)
        with one_blas_thread(), one_torch_thread():
            self._select(rows, Cs)
            problem = prepare(
                rows.X,
                rows.codes,
                len(self.classes_),
                weights=rows.weights,
                standardize=self.standardize,
                device=self.device,
            )
            solution = solve(problem, self.C_, tol=self.tol, max_iter=self.max_iter)
        self.set_linear(*to_feature_space(problem, solution))
        self.n_iter_, self.gap_ = max(solution.iterations, 1), solution.gap
        self.converged_ = solution.converged
        if not self.converged_:
            warnings.warn(self._not_converged(), ConvergenceWarning, stacklevel=2)
        return self

    def _strengths(self) -> list[float]:
        """The path from strong to weak regularisation."""
        check_fold_count(self.cv)
        check_rule(self.rule)
        check_class_weight(self.class_weight)
        given = np.logspace(-4, 1.5, 12) if self.Cs is None else self.Cs
        Cs = sorted(float(C) for C in (given if self.C is None else [self.C]))
        if not Cs or not all(0 < C < float("inf") for C in Cs):
            raise HeadError(
                f"Strengths of regularisation are {Cs}; expected positive, finite numbers, such as "
                f"C=0.1 or Cs=(0.001, 0.01, 0.1, 1)."
            )
        return Cs

    def _select(self, rows: TrainingRows, Cs: list[float]) -> None:
        """Set `C_`, `selection_` and `cv_results_`."""
        self.cv_results_ = None
        if len(Cs) == 1:
            self.C_, self.selection_ = Cs[0], "given"
            return
        assigned, origin = assign_folds(
            rows.codes, rows.groups, rows.folds, self.cv, self.random_state
        )
        judging = few_folds(assigned)
        parts = list(split_folds(judging, rows.codes))
        if not parts:
            self.C_ = DEFAULT_C
            self.selection_ = (
                f"default, C = {DEFAULT_C}: no class has rows to train and to validate"
            )
            return
        self.cv_results_ = self._judge(rows, Cs, parts)
        names = ("accuracy", "log_loss", "standard_error")
        results = [self.cv_results_[name] for name in names]
        taken = select(*results, rule=self.rule, strongest_last=False)
        edge = ", at the edge of the path" if taken in (0, len(Cs) - 1) else ""
        self.C_ = Cs[taken]
        how = in_words(assigned, judging, rows.codes, origin)
        self.selection_ = how + rule_in_words(self.rule) + edge

    def _judge(
        self, rows: TrainingRows, Cs: list[float], parts: list[tuple[Codes, Codes]]
    ) -> dict[str, Float64s]:
        """Accuracy, log loss and standard error over the validation rows of all folds.

        Of the strengths that each fold has judged: the first ones, up to the earliest end.
        """
        at_once = _folds_at_once(rows.X, len(parts))
        threads = max(1, usable_cores() // at_once)

        def judge(train: Codes, validation: Codes) -> _Path:
            return self._judge_fold(rows, (train, validation), Cs, threads)

        with ThreadPoolExecutor(at_once) as pool:
            futures = list(starmap(lambda *part: pool.submit(judge, *part), parts))
            found = [future.result() for future in futures]
        reached = min(len(path.sums) for path in found)
        judged = np.concatenate([validation for _, validation in parts])
        total = np.sum([path.sums[:reached] for path in found], axis=0)
        weights = some_weights(rows.weights, judged)
        row_count = total_weight(judged, weights)
        accuracy, loss = total.T / row_count
        right = np.concatenate([np.stack(path.right[:reached]) for path in found], axis=1)
        best = best_of(accuracy, loss)
        errors = standard_errors(best, row_count, right, weights)
        results = {"accuracy": accuracy, "log_loss": loss, "standard_error": errors}
        return {"C": np.array(Cs[:reached]), **results}

    def _judge_fold(
        self, rows: TrainingRows, part: tuple[Codes, Codes], Cs: list[float], threads: int
    ) -> _Path:
        """The strengths of a path, judged on the validation rows of a fold."""
        train, validation = part
        present, relabelled = np.unique(rows.codes[train], return_inverse=True)
        problem = prepare(
            rows.X,
            relabelled,
            len(present),
            rows=train,
            weights=some_weights(rows.weights, train),
            standardize=self.standardize,
            device=self.device,
            threads=threads,
        )
        truth = np.searchsorted(present, rows.codes[validation])
        weights = some_weights(rows.weights, validation)
        judged = Standardized(rows.X, validation, problem.mean, problem.scale)
        path = _Path([], [])

        def go_on(solution: Solution) -> bool:
            sums, right = _judged(problem, solution, judged, (truth, weights))
            path.sums.append(sums)
            path.right.append(right)
            return not _is_over(np.array(path.sums))

        tol = max(self.tol, SELECTION_TOL_EXACT if problem.is_exact else SELECTION_TOL)
        solve_path(problem, Cs, tol=tol, max_iter=self.max_iter, go_on=go_on)
        return path

    def _not_converged(self) -> str:
        is_limited = self.n_iter_ >= self.max_iter
        how = "Raise max_iter or tol, or take a smaller C" if is_limited else "Take a smaller C"
        why = "" if is_limited else ", and rounding hides any decrease"
        return (
            f"LogisticProbe stopped after {self.n_iter_} iterations at C = {self.C_:g}, where a "
            f"share of {self.gap_:.1e} of the objective was left, more than tol = {self.tol:g}"
            f"{why}. {how}."
        )


def _folds_at_once(X: Any, fold_count: int) -> int:
    """How many folds run beside each other: each may hold 8 bytes for every feature.

    Features in a file are read by one of them at a time.
    """
    if folder_of(X) is not None:
        return 1
    fitting = FOLD_MEMORY_BYTES // max(1, 8 * X.size)
    return int(max(1, min(usable_cores(), fitting, fold_count)))


class _Path(NamedTuple):
    """Of each strength: correct answers and summed log loss `(2,)`, and which rows it got right."""

    sums: list[Float64s]
    right: list[npt.NDArray[np.bool_]]


def _judged(
    problem: Problem,
    solution: Solution,
    rows: Standardized,
    labelled: tuple[Codes, Float64s | None],
) -> tuple[Float64s, npt.NDArray[np.bool_]]:
    """Correct answers and summed log loss `(2,)` of rows outside the problem, and which are right.

    The sums count each row by its weight.
    """
    point = solution.point.double().cpu().numpy()
    weight = (problem.axes.double().cpu().numpy() @ point[:, :-1].T).astype(rows.mean.dtype)
    truth, weights = labelled
    sums, right = np.zeros(2), np.empty(len(rows), dtype=bool)
    for some in chunks(np.arange(len(rows))):
        scores = rows.block(some[0], some[-1] + 1) @ weight
        scores += point[:, -1].astype(scores.dtype)
        right[some] = scores.argmax(axis=1) == truth[some]
        sums += log_loss_sums(scores, truth[some], some_weights(weights, some))
    return sums, right


def _is_over(sums: Float64s) -> bool:
    """Whether the last strengths were all worse than the best before, in both."""
    correct, loss = sums[:-PATIENCE].T if len(sums) > PATIENCE else np.empty((2, 0))
    if not len(correct):
        return False
    last = sums[-PATIENCE:]
    return bool((last[:, 0] < correct.max()).all() and (last[:, 1] > loss.min()).all())
