"""scikit-learn's own tests of its multilayer perceptrons, asked of ours: one import line is another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.neural_network

from mlp_xp.estimators import MLPClassifier
from mlp_xp.estimators.lbfgs import LossAndGradient
from mlp_xp.params import Parameters

THEIRS = Path(sklearn.neural_network.__file__).parent / "tests" / "test_mlp.py"
LINE = "from sklearn.neural_network import MLPClassifier, MLPRegressor\n"

if not THEIRS.exists():
    pytest.skip("scikit-learn was installed without its tests", allow_module_level=True)

pytestmark = [  # theirs do not count warnings as errors
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture
def global_random_seed():
    return 42


def loss_grad_lbfgs(self, packed, X, Y, sample_weight, *scratch):
    """Answer what `test_gradient` asks a private method for: parameters come as all coefs_, then all intercepts_."""
    parts = [*self.coefs_, *self.intercepts_]
    cuts = np.cumsum([part.size for part in parts])[:-1]
    values = [v.reshape(part.shape) for v, part in zip(np.split(packed, cuts), parts, strict=True)]
    model, layers = self.to_mlp(), len(self.coefs_)
    theta = model.layout.join(Parameters([None, *(W.T for W in values[:layers])], [None, *values[layers:]]))
    if not hasattr(self, "_function"):  # for the same samples each time
        self._function = LossAndGradient(model, X, Y, self._objective(model), sample_weight)
    loss, gradient = self._function(theta)
    split = model.layout.split(gradient)
    return loss, np.hstack([part.ravel() for part in (*(W.T for W in split.W[1:]), *split.b[1:])])


@pytest.fixture(autouse=True)
def ask_us(monkeypatch):
    monkeypatch.setattr(MLPClassifier, "_loss_grad_lbfgs", loss_grad_lbfgs, raising=False)


source = THEIRS.read_text(encoding="utf-8")
assert source.count(LINE) == 1
exec(compile(source.replace(LINE, "from mlp_xp.estimators import MLPClassifier, MLPRegressor\n"), THEIRS, "exec"))
