"""What is put on top of the loop: recording, progress, stopping. A callback is called with each state."""

from .early_stopping import EarlyStopping
from .history import History, accuracy_by_class
from .progress import Progress
from .protocol import Callback

__all__ = ["Callback", "EarlyStopping", "History", "Progress", "accuracy_by_class"]
