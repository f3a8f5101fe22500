"""Inference: outputs of a network, and what is measured on them, for rows wherever they are."""

from __future__ import annotations

from .compiled import Predictor
from .outputs import Inference

__all__ = ["Inference", "Predictor"]
