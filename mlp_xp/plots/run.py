"""The pictures of a run folder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..files.atomic import replace_file
from ..mlp import MLP
from ..objective import OUTPUTS
from ._style import layout
from .curves import has_scores, learning_curves
from .images import most_confidently_wrong, sample_grid, weight_images
from .matrix import confusion_matrix, matrix_size

__all__ = ["save_run_plots"]

SMALLEST_SIDE = 8  # a row of fewer than 8x8 numbers is a table whose width happens to be a square


def save_run_plots(folder: str | os.PathLike[str], model: MLP, history: Any, test: tuple[Any, Any]) -> None:
    """Write the pictures of a training run as PNG files, each whole or not at all.

    ``learning_curves.png`` always; ``confusion_matrix.png`` for a classifier; ``first_layer_weights.png`` where the
    inputs are square images; ``samples.png`` and ``most_confidently_wrong.png`` where both are so. No pyplot figure is
    made: any thread may call this.

    Parameters
    ----------
    folder : path
        Made if it is missing.
    model : MLP
    history : History
        What `fit` returned.
    test : (X, y)
        Samples (n, d) and their targets, for a classifier labels (n,) or one-hot rows (n, k).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, size: tuple[float, float], draw: Callable[..., Any], *data: Any, panels: int = 1) -> None:
        figure = Figure(figsize=size, dpi=150, layout=layout())
        draw(*data, ax=figure.subplots(1, panels))
        _save(figure, folder / f"{name}.png")

    panels = 2 if has_scores(history) else 1
    write("learning_curves", (6 * panels, 4.4), learning_curves, history, panels=panels)

    side = isqrt(model.sizes[0])
    images = side >= SMALLEST_SIDE and side * side == model.sizes[0]
    if images:
        write("first_layer_weights", (6.2, 5.5), weight_images, model.weights[0], (side, side))

    output, k = OUTPUTS[model.output], model.sizes[-1]
    if output.task == "classes" or (output.task == "labels" and k == 1):
        X, y = np.asarray(test[0]), np.asarray(test[1])
        y = y.argmax(axis=1) if y.ndim == 2 and k > 1 else y.ravel()
        names = range(max(k, 2))
        write("confusion_matrix", matrix_size(len(names)), confusion_matrix, y, model.predict(X), names)
        if images:
            write("samples", (6.6, 6.6), sample_grid, X, y)
        if images and output.probability:
            write("most_confidently_wrong", (6.8, 7.0), most_confidently_wrong, X, y, model.predict_proba(X))


def _save(figure: Figure, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    replace_file(path, [png.getbuffer()], verify=lambda file: None)
