"""``python -m mlp_xp.trace``: a pass as a table of formulas and shapes."""

from __future__ import annotations

import sys

from .cli.trace import main, totals, trace

__all__ = ["main", "totals", "trace"]

if __name__ == "__main__":
    sys.exit(main())
