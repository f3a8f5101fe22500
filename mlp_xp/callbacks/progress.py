"""A progress bar."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Progress"]


class Progress:
    """A progress bar with loss, score and speed; silent unless standard error is a terminal.

    Parameters
    ----------
    total : int
        Epochs that are planned.
    disable : bool, optional
        None decides by the terminal. Without a standard error, or if it is closed, there is no bar in any case.

    Attributes
    ----------
    bar : tqdm.tqdm or None
        The bar of the last ``fit``.
    """

    of_rank_0 = True

    def __init__(self, total: int, disable: bool | None = None) -> None:
        self.total, self.disable = total, disable
        self.bar: Any = None

    def begin(self, model: Any = None) -> None:
        """Begin a new bar."""
        from tqdm import tqdm

        silent = sys.stderr is None or getattr(sys.stderr, "closed", False)
        self.bar = tqdm(
            total=self.total, unit="epoch", disable=silent or self.disable, file=sys.stderr, mininterval=0.1, leave=True
        )

    def __call__(self, state: Any) -> None:
        if self.bar is None:
            self.begin()
        shown = {"loss": float(state.loss)}
        shown |= {name: value for name, value in state.metrics.items() if name.endswith(("_accuracy", "_r2"))}
        if not self.bar.n:
            self.bar.n = self.bar.initial = state.epoch - 1  # of a run that was resumed
        self.bar.set_postfix_str(", ".join(f"{name} {value:.4f}" for name, value in shown.items()), refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the last line on the screen."""
        if self.bar is not None:
            self.bar.close()
