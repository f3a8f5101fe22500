"""Rosenblatt's perceptron, step by step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import type_of_target

from ..checks import check_choice, check_count, check_seed
from ..fit import fit
from ..mlp import MLP
from ..optim import SGD
from .base import LinearClassifier

__all__ = ["Perceptron", "Step"]


class Step(NamedTuple):
    """A row of the perceptron's table: the index of the misclassified point, and the weights (d,) and bias after it."""

    point: int | None
    w: NDArray[Any]
    b: float


class Perceptron(LinearClassifier):
    """Rosenblatt's perceptron, step by step: at a point with y (w·x + b) <= 0, w += η y x and b += η y.

    That is gradient descent on the criterion max(0, -y (w·x + b)) of one misclassified point at a time, starting at
    zero. Of the two classes the first in order counts as y = -1, the second as +1.

    Parameters
    ----------
    lr : float
        Learning rate η.
    choose : {"cyclic", "random"} or sequence of int
        Which misclassified point comes next: the first one after the last choice, beginning again after the last row;
        any one; or, for the first steps, the rows of these indices, and cyclic after them.
    max_steps : int
        The most steps.
    random_state : int
        Seed of the random choice.

    Attributes
    ----------
    path_ : list of Step
        The start, (None, 0, 0), and what each step led to.
    coef_, intercept_ : ndarray (1, d) and (1,)
    classes_ : ndarray (2,)

    Raises
    ------
    ValueError
        From `fit`, if the data or a parameter do not fit, or a chosen point is classified correctly.

    Warns
    -----
    ConvergenceWarning
        If points are still misclassified after `max_steps` steps.

    Examples
    --------
    >>> perceptron = Perceptron().fit([[3, 3], [4, 3], [1, 1]], [1, 1, -1])
    >>> for point, w, b in perceptron.path_:
    ...     print(point, w, b)
    None [0. 0.] 0.0
    0 [3. 3.] 1.0
    2 [2. 2.] 0.0
    2 [1. 1.] -1.0
    2 [0. 0.] -2.0
    0 [3. 3.] -1.0
    2 [2. 2.] -2.0
    2 [1. 1.] -3.0
    """

    def __init__(
        self,
        lr: float = 1.0,
        choose: str | Sequence[int] = "cyclic",
        max_steps: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.lr = lr
        self.choose = choose
        self.max_steps = max_steps
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Perceptron:
        """Look for a line between the samples `X` (n, d) of two classes `y` (n,)."""
        X, codes = self._read(X, y)
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {type_of_target(y)}: a perceptron "
                "tells two classes apart; use LogisticRegression for more"
            )
        check_count("max_steps", self.max_steps)
        if not isinstance(self.choose, Sequence | np.ndarray) or isinstance(self.choose, str):
            check_choice("choose", self.choose, ("cyclic", "random"))
        rng, optimizer = np.random.default_rng(check_seed(self.random_state)), SGD(self.lr)
        model = self._make_model(X.shape[1])
        self.path_ = [Step(None, model.weights[0][0], 0.0)]
        while len(wrong := np.flatnonzero((2 * codes - 1) * model.outputs(X)[:, 0] <= 0)):
            if len(self.path_) > self.max_steps:
                warnings.warn(
                    f"{len(wrong)} of {len(X)} points are still misclassified after {self.max_steps} steps: perhaps no "
                    "line separates the classes; raise max_steps, add features, or use LogisticRegression",
                    ConvergenceWarning,
                    stacklevel=2,
                )
                break
            i = self._choose(wrong, rng)
            fit(model, X[[i]], codes[[i]], epochs=1, optimizer=optimizer, plan="dense", threads=1)
            self.path_.append(Step(i, model.weights[0][0], float(model.biases[0][0])))
        self.coef_, self.intercept_ = model.weights[0], model.biases[0]
        return self

    def _make_model(self, d: int) -> MLP:
        return MLP([d, 1], output="perceptron", init="zeros", dtype="float64")

    def _choose(self, wrong: NDArray[Any], rng: np.random.Generator) -> int:
        """Return one of the misclassified points, whose indices ascend."""
        step, last = len(self.path_), self.path_[-1].point
        if isinstance(self.choose, str):
            if self.choose == "random":
                return int(rng.choice(wrong))
        elif step <= len(self.choose):
            if self.choose[step - 1] not in wrong:
                raise ValueError(
                    f"choose names point {self.choose[step - 1]} for step {step}, where the misclassified points are "
                    f"{wrong.tolist()}; name one of these"
                )
            return int(self.choose[step - 1])
        after_last = np.searchsorted(wrong, 0 if last is None else last + 1)
        return int(wrong[after_last % len(wrong)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
