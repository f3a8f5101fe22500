"""The pictures of a run folder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..datasets.maps import Span
from ..files.atomic import replace_file
from ..mlp import MLP
from ..objective import OUTPUTS
from ._style import PALETTE, layout
from .curves import curve_panels, learning_curves
from .images import digit_predictions, most_confidently_wrong, sample_grid, weight_images
from .matrix import confusion_matrix, matrix_size
from .plane import decision_regions
from .values import predicted_against_true

__all__ = ["save_predictions", "save_run_plots"]

MOST_READ = 10_000  # rows of samples in files, from which pictures are chosen
SMALLEST_SIDE = 8  # a row of fewer than 8x8 numbers is a table whose width happens to be a square


def save_run_plots(folder: str | os.PathLike[str], model: MLP, history: Any, test: tuple[Any, Any]) -> None:
    """Write the pictures of a training run as PNG files, each whole or not at all.

    ``learning_curves.png`` always; ``confusion_matrix.png`` for a classifier, with ``decision_regions.png`` if it has
    two inputs; ``predicted_against_true.png`` for values; ``first_layer_weights.png`` if the inputs are square images;
    ``samples.png`` and ``most_confidently_wrong.png`` for a classifier of such images. No pyplot figure is made: any
    thread may call this.

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

    output, k, d = OUTPUTS[model.output], model.sizes[-1], model.sizes[0]
    panels = len(curve_panels(history))
    write("learning_curves", (6 * panels, 4.4), learning_curves, history, panels=panels)

    side = isqrt(d)
    images = side >= SMALLEST_SIDE and side * side == d
    if images:
        write("first_layer_weights", (5.5, 6.2), weight_images, model.weights[0], (side, side))

    X, y = test[0], np.asarray(test[1])
    X = X if isinstance(X, Span) else np.asarray(X)
    seen = np.asarray(X[:MOST_READ]) if isinstance(X, Span) else X
    if output.task == "values":
        write("predicted_against_true", (5.4, 5.0), predicted_against_true, y, model.predict(X))
    elif output.task == "classes" or k == 1:
        y = y.argmax(axis=1) if y.ndim == 2 and k > 1 else y.ravel()
        names = range(max(k, 2))
        write("confusion_matrix", matrix_size(len(names)), confusion_matrix, y, model.predict(X), names)
        if d == 2 and len(names) <= len(PALETTE):
            scaled = seen / 255 if X.dtype == np.uint8 else seen  # as the model sees them, for the plane between them
            write("decision_regions", (6.4, 5.0), decision_regions, model, scaled, y[: len(seen)])
        if images:
            write("samples", (6.6, 6.6), sample_grid, seen, y[: len(seen)])
        if images and output.probability:
            P = model.predict_proba(seen)
            write("most_confidently_wrong", (6.8, 7.0), most_confidently_wrong, seen, y[: len(seen)], P)


def save_predictions(path: str | os.PathLike[str], X: Any, names: Any, P: Any, truth: Any) -> None:
    """Write images (n, d), what a model saw in them and how sure it was, as one PNG, whole or not at all.

    Parameters
    ----------
    path : path
    X : array (n, d)
        A square image in each row.
    names, truth : array (n,)
        The predicted and the true classes.
    P : array (n, k)
        The probabilities of the classes.
    """
    figure = Figure(figsize=(max(5.0, 1.7 * min(4, len(X))), 2.2 * ceil(len(X) / 4) + 0.4), dpi=150, layout=layout())
    digit_predictions(X, names, P, truth, ax=figure.subplots())
    _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a backend: importing mlp_xp.plots needs none

    png = io.BytesIO()
    # not savefig, which draws twice, the first time for the layout alone; level 1 is a fifth larger, a third faster
    FigureCanvasAgg(figure).print_png(png, pil_kwargs={"compress_level": 1})
    replace_file(path, [png.getbuffer()], verify=lambda file: None)
