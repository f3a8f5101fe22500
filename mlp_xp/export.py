"""``python -m mlp_xp.export``: a trained model for other programs."""

from __future__ import annotations

import sys

from .cli.export import main, run
from .convert.onnx import save_onnx, to_onnx

__all__ = ["main", "run", "save_onnx", "to_onnx"]

if __name__ == "__main__":
    sys.exit(main())
