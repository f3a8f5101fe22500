"""What a training prints on its way."""

from __future__ import annotations

from collections.abc import Sequence

from ..loop import State
from ..mlp import MLP
from ..objective import OUTPUTS
from .errors import printable

__all__ = ["Report"]


class Report:
    """Prints what there is to say of the data, and a table of epochs: the first, the last, and some between.

    The training loss is the mean over the epoch; with all samples at once, that is the loss before its only update.
    The other data are measured after the epoch.
    """

    def __init__(self, epochs: int, every: int, watched: str, notes: Sequence[str]) -> None:
        self.last, self.watched, self.notes = epochs, watched, notes
        self.every = every or max(1, epochs // 10)

    def begin(self, model: MLP) -> None:
        """Print the notes: what could be wrong with the input has been refused by now."""
        self.begun = False
        for note in self.notes:
            print(printable(note))

    def __call__(self, state: State) -> None:
        if state.epoch % self.every and state.epoch not in (1, self.last):
            return
        from tqdm import tqdm

        score = "R^2" if OUTPUTS[state.model.output].task == "values" else "accuracy"
        loss, value = state.metrics.values()  # one evaluation measures them, in this order
        cells = {
            "epoch": f"{state.epoch}",
            "training loss": f"{float(state.loss):.4f}",
            f"{self.watched} loss": f"{loss:.4f}",
            f"{self.watched} {score}": f"{value:.4f}",
            "seconds": f"{float(state.seconds):.2f}",
        }
        with tqdm.external_write_mode():
            if not self.begun:
                print("  ".join(cells))
            print("  ".join(cell.rjust(len(title)) for title, cell in cells.items()), flush=True)
        self.begun = True
