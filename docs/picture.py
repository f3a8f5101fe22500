"""Draw ``images/architecture.svg``: the modules of the package at the levels that ``tests/test_layers.py`` enforces.

Run ``python docs/picture.py`` after adding a module.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import mlp_xp

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
WHAT = [
    "checks of arguments",
    "files and data sets",
    "array libraries and devices",
    "operations and parameters",
    "forward and backward, once",
    "what moves the parameters",
    "the model, its rows, its way to other programs, where it is in training",
    "where rows are and updates are computed",
    "the loop, and L-BFGS",
    "recording, stopping, progress",
    "runs: folders, checkpoints, reports",
    "the loop with all of these on it",
    "pictures",
    "scikit-learn's interface",
    "commands",
    "their entries",
]
WIDTH, HEIGHT, GAP, MARGIN = 920, 74, 18, 3
BOX = '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" stroke="#3f51b5"/>'
TEXT = '<text x="{x}" y="{y}" font-size="{size}" fill="#1a237e"{more}>{words}</text>'
ARROW = '<path d="M{x} {y} v10 m-5 -5 l5 6 l5 -6" fill="none" stroke="#3f51b5" stroke-width="2"/>'


def draw() -> str:
    """Return the picture as SVG, the highest level on top; levels without a module yet are left out."""
    levels = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["LEVELS"]
    package = Path(mlp_xp.__file__).parent
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rows = [(what, sorted(names & there)) for what, names in zip(WHAT, levels, strict=True) if names & there]
    height = len(rows) * (HEIGHT + GAP) - GAP + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        "<title>The modules of mlp_xp by level; imports point downwards</title>",
    ]
    for i, (what, names) in enumerate(reversed(rows)):
        y = MARGIN + i * (HEIGHT + GAP)
        lines.append(BOX.format(x=MARGIN, y=y, w=WIDTH - 2 * MARGIN, h=HEIGHT, fill="#e8eaf6"))
        lines.append(TEXT.format(x=18, y=y + 24, size=15, more="", words=what))
        x = 18
        for name in names:
            w = 9 * len(name) + 20
            lines.append(BOX.format(x=x, y=y + 36, w=w, h=28, fill="#fff"))
            more = ' text-anchor="middle" font-family="monospace"'
            lines.append(TEXT.format(x=x + w // 2, y=y + 55, size=14, more=more, words=name))
            x += w + 8
        if i < len(rows) - 1:
            lines.append(ARROW.format(x=WIDTH // 2, y=y + HEIGHT + 2))
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
