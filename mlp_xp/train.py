"""``python -m mlp_xp.train``: train a network, leave a run folder."""

from __future__ import annotations

import sys

from .cli.train import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    sys.exit(main())
