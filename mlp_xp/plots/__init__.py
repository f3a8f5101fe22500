"""Pictures of data, training and decisions.

Every function takes an optional ``ax``, draws on it and returns it; without one it makes a new pyplot figure.
This is the only part of the library that imports matplotlib. It sets no backend and shows nothing by itself.
"""

from __future__ import annotations

try:
    import matplotlib as _matplotlib  # noqa: F401 - asked for here, so that its absence is explained
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("mlp_xp.plots needs matplotlib; install it with: pip install 'mlp_xp[plot]'") from error

from .curves import activation_functions, delta_norms, learning_curves, loss_surface
from .images import digit_predictions, most_confidently_wrong, sample_grid, weight_images
from .matrix import confusion_matrix
from .plane import decision_regions, hidden_space, perceptron_lines
from .run import save_run_plots
from .values import predicted_against_true

__all__ = [
    "activation_functions",
    "confusion_matrix",
    "decision_regions",
    "delta_norms",
    "digit_predictions",
    "hidden_space",
    "learning_curves",
    "loss_surface",
    "most_confidently_wrong",
    "perceptron_lines",
    "predicted_against_true",
    "sample_grid",
    "save_run_plots",
    "weight_images",
]
