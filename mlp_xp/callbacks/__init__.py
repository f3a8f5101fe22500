"""What is put on top of the loop: measuring, recording, progress, stopping. A callback is called with each state."""

from .early_stopping import EarlyStopping
from .evaluation import Evaluation
from .history import History, accuracy_by_class
from .progress import Progress
from .protocol import Callback

__all__ = ["Callback", "EarlyStopping", "Evaluation", "History", "Progress", "accuracy_by_class"]
