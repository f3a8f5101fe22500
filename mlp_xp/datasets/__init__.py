"""Data sets: MNIST (in the package), Fashion-MNIST (downloaded), toy sets, and the user's own files."""

from __future__ import annotations

from .fashion import fashion_mnist
from .files import load
from .idx import read_idx
from .mnist import mnist
from .records import Dataset
from .shards import Shards
from .toys import moons, spirals, xor

__all__ = ["Dataset", "Shards", "fashion_mnist", "load", "mnist", "moons", "read_idx", "spirals", "xor"]
