"""Networks with scikit-learn's interface: its own multilayer perceptrons, and the lectures' linear classifiers.

Legend: ``n`` rows, ``d`` inputs, ``k`` classes. Features count as they are, bytes too.
"""

from .classifier import MLPClassifier
from .logistic import LogisticRegression
from .perceptron import Perceptron, Step
from .regressor import MLPRegressor

__all__ = ["LogisticRegression", "MLPClassifier", "MLPRegressor", "Perceptron", "Step"]
