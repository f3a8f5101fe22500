"""The lectures' linear classifiers with scikit-learn's interface: networks of one layer, trained like any other.

Legend: ``n`` rows, ``d`` inputs, ``k`` classes. Features count as they are, bytes too.
"""

from .logistic import LogisticRegression
from .perceptron import Perceptron, Step

__all__ = ["LogisticRegression", "Perceptron", "Step"]
