"""``python -m mlp_xp.predict``: what a trained model sees in pictures."""

from __future__ import annotations

import sys

from .cli.predict import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    sys.exit(main())
