"""``python -m mlp_xp.trace``: a whole pass as a table of formulas, shapes, parameters, operations and bytes.

The table is no second description of the pass: the text of ``model.py`` runs on kernels that know shapes only.
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from itertools import groupby
from typing import cast

from ..checks import check_choice, check_count, check_sizes
from ..kernels import Kernels
from ..kernels.symbolic import PRODUCTS, ShapeKernels, Symbol, TraceLine
from ..model import Network, check_activations, grad_sum
from ..objective import OUTPUTS, Objective, check_output
from ..params import Parameters
from .errors import Parser, exit_code

__all__ = ["FORMS", "main", "totals", "trace"]

FORMS = ("row", "column")
ITEM_SIZES = {"fp32": 4, "fp64": 8}
HEADINGS = ("formula", "shapes", "parameters", "FLOPs", "bytes")
NOTES = """\
FLOPs: 2 for each multiply-add of a matrix product, 1 for each element of
everything else. dW and db are sums over the samples. They are divided by n
once, at the end."""


def trace(
    sizes: Sequence[int],
    samples: int = 1,
    activation: str | Sequence[str] = "sigmoid",
    output: str = "softmax",
    form: str = "row",
    precision: str = "fp32",
) -> list[TraceLine]:
    """Return the steps of one forward and backward pass, in the order in which ``model.py`` takes them.

    Parameters
    ----------
    sizes, activation, output
        As for :class:`mlp_xp.MLP`. Without an activation, hidden layers are sigmoids, as in the lectures.
    samples : int
        Rows of X.
    form : {"row", "column"}
        Samples as rows, X (n, n_0), as in the code, or as columns, X (n_0, n), as in the lectures.
    precision : {"fp32", "fp64"}

    Raises
    ------
    ValueError
        If an argument is unknown or does not fit.

    Examples
    --------
    >>> for step in trace([10, 64, 1], samples=7, output="sigmoid")[:3]:
    ...     print(f"{step.formula:26s}{step.shapes}")
    A[0] = X                  (7, 10)
    Z[1] = A[0] W[1]ᵀ + b[1]  (7, 10) (10, 64) + (64,) -> (7, 64)
    A[1] = σ(Z[1])            (7, 64) -> (7, 64)
    """
    sizes = check_sizes(sizes)
    n = check_count("samples", samples)
    g = check_activations(activation, len(sizes) - 2)
    last = check_output(output, sizes[-1])
    item_size = ITEM_SIZES[check_choice("precision", precision, ITEM_SIZES)]
    kernels = ShapeKernels(check_choice("form", form, FORMS), item_size)
    network = Network(("", *g, last.activation), Objective(last))
    X, Y = Symbol("X", (n, sizes[0])), Symbol("Y", (n, sizes[-1]))
    grad_sum(network, cast(Kernels, kernels), _symbols("W", "b", sizes), X, Y, into=_symbols("dW", "db", sizes))
    return kernels.steps


def _symbols(W: str, b: str, sizes: Sequence[int]) -> Parameters:
    layers = range(1, len(sizes))
    return Parameters(
        [None, *(Symbol(W, (sizes[l], sizes[l - 1]), l, of_samples=False) for l in layers)],
        [None, *(Symbol(b, (sizes[l],), l, of_samples=False) for l in layers)],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code("trace", lambda: _run_with(arguments))


def _run_with(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m mlp_xp.trace",
        description="Show the formulas and shapes of one forward and backward pass, and what they cost.",
    )
    parser.add_argument("sizes", metavar="UNITS", nargs="+", type=_whole, help="units per layer, input first")
    parser.add_argument("--samples", metavar="N", type=_whole, default=1, help="rows of X (default: 1)")
    parser.add_argument(
        "--activation",
        metavar="G,G",
        default="sigmoid",
        help="of hidden layers: one name, or one each (default: sigmoid)",
    )
    parser.add_argument("--output", metavar="NAME", default="softmax", help=", ".join(OUTPUTS))
    parser.add_argument("--form", choices=FORMS, default="row", help="samples as rows, as in the code, or as columns")
    parser.add_argument("--precision", choices=ITEM_SIZES, default="fp32", help="of all computation")
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--markdown", action="store_true", help="print a Markdown table")
    written.add_argument("--json", action="store_true", help="print JSON")
    given = vars(parser.parse_args(arguments))
    as_markdown, as_json = given.pop("markdown"), given.pop("json")
    names = [name.strip() for name in given["activation"].split(",")]
    given["activation"] = names[0] if len(names) == 1 else names
    steps = trace(**given)
    if as_json:
        print(json.dumps({**given, "steps": [asdict(step) for step in steps], "totals": totals(steps)}, indent=2))
        return
    try:
        print(_markdown(steps) if as_markdown else _table(steps))
    except UnicodeEncodeError:
        raise ValueError(
            f"the output's encoding {sys.stdout.encoding} has no Greek letters; set PYTHONUTF8=1, or choose --json"
        ) from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"takes a whole number, got {text!r}") from None


def totals(steps: Sequence[TraceLine]) -> dict[str, int]:
    """Return the sums over the steps: parameters, flops, those of matrix products, bytes."""
    return {
        "parameters": sum(step.parameters for step in steps),
        "flops": sum(step.flops for step in steps),
        "product_flops": sum(step.flops for step in steps if step.operation in PRODUCTS),
        "bytes": sum(step.bytes for step in steps),
    }


def _table(steps: Sequence[TraceLine]) -> str:
    """Return an aligned table for the terminal: large numbers rounded, totals exact below.

    On a terminal that is too narrow for it, shapes stand below their formulas.
    """
    rows = [HEADINGS]
    for part, group in groupby(steps, key=lambda step: step.part):
        rows.append((part, "", "", "", ""))
        rows += [(f"  {s.formula}", s.shapes, *_short(s.parameters, s.flops, s.bytes)) for s in group]
    total = totals(steps)
    rows.append(("total", "", *_short(total["parameters"], total["flops"], total["bytes"])))
    terminal = shutil.get_terminal_size((10_000, 0)).columns  # a file or a pipe takes every width
    lines = _align(rows)
    if max(map(len, lines)) > terminal:
        below = {row[0]: row[1] for row in rows[1:] if row[1]}
        narrow = _align([(formula, *numbers) for formula, _, *numbers in rows])
        lines = []
        for line, row in zip(narrow, rows, strict=True):
            lines += [line, f"      {below[row[0]]}"] if row[0] in below else [line]
    lines.insert(-1, "-" * max(map(len, lines)))
    flops = f"{total['flops']:,} FLOPs, {total['product_flops']:,} of them in matrix products"
    return "\n".join([*lines, "", flops, f"{total['bytes']:,} bytes", NOTES])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return each row as a line of aligned cells: the last three, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = len(widths) - 3
    lines = []
    for row in rows:
        cells = [*map(str.ljust, row[:words], widths), *map(str.rjust, row[words:], widths[words:])]
        lines.append("  ".join(cells).rstrip())
    return lines


def _markdown(steps: Sequence[TraceLine]) -> str:
    """Return a Markdown table with exact numbers."""
    total = totals(steps)
    rows = [(f"`{s.formula}`", s.shapes, s.parameters, s.flops, s.bytes) for s in steps]
    rows.append(("total", "", total["parameters"], total["flops"], total["bytes"]))
    lines = [f"| {formula} | {shapes} | {p:,} | {flops:,} | {size:,} |" for formula, shapes, p, flops, size in rows]
    return "\n".join([f"| {' | '.join(HEADINGS)} |", "|---|---|--:|--:|--:|", *lines])


def _short(parameters: int, flops: int, size: int) -> tuple[str, str, str]:
    """Return the numbers of a row as they are shown: exact, and as in "18.4 G" and "47.0 MB"; nothing for 0."""
    return f"{parameters:,}" if parameters else "", _rounded(flops), _rounded(size, "B")


def _rounded(value: int, unit: str = "") -> str:
    power = min((len(str(value)) - 1) // 3, 6)
    number = f"{Decimal(value).scaleb(-3 * power):,.1f}" if power else f"{value}"
    return f"{number} {'kMGTPE'[power - 1] if power else ''}{unit}".rstrip() if value else ""
