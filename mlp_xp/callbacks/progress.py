"""A progress bar."""

from __future__ import annotations

import sys
from typing import Any

from ..objective import OUTPUTS

__all__ = ["Progress"]


class Progress:
    """A progress bar with loss, accuracy and speed; silent where nobody watches (standard error is no terminal).

    Parameters
    ----------
    total : int
        Epochs that are planned.
    disable : bool, optional
        None decides by the terminal.
    """

    def __init__(self, total: int, disable: bool | None = None) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="epoch", disable=disable, file=sys.stderr, mininterval=0.1, leave=True)

    def __call__(self, state: Any) -> None:
        shown = f"loss {float(state.loss):.4f}"
        if "val_accuracy" in state.metrics:
            name = "R2" if OUTPUTS[state.model.output].task == "values" else "accuracy"
            shown += f", {name} {state.metrics['val_accuracy']:.4f}"
        if not self.bar.n:
            self.bar.n = self.bar.initial = state.epoch - 1  # of a run that was resumed
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the last line standing."""
        self.bar.close()
