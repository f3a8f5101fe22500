"""``python -m mlp_xp.export``: a trained model as an ONNX file, for programs that know nothing of mlp_xp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..convert.onnx import save_onnx, signature
from ..mlp import MLP
from .errors import Parser, exit_code, model_file

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code("export", lambda: _run_with(arguments))


def _run_with(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m mlp_xp.export", description="Write a trained model for other programs.")
    parser.add_argument("model", metavar="RUN", help="a run folder, or a model file")
    parser.add_argument("--onnx", action="store_true", required=True, help="the format to write")
    parser.add_argument("--pixels", action="store_true", help="take uint8 and divide by 255 inside")
    parser.add_argument("--out", metavar="FILE", help="what to write (default: beside the model, ending in .onnx)")
    given = parser.parse_args(arguments)
    run(Path(given.model), Path(given.out) if given.out else None, pixels=given.pixels)


def run(source: Path, out: Path | None = None, *, pixels: bool = False) -> Path:
    """Write the model in `source`, a run folder or a model file, to the ONNX file `out`; print and return its path.

    Raises
    ------
    ValueError, OSError
        If the model is damaged, the run is not finished, or `out` cannot be written.
    """
    path = model_file(source)
    out = out or path.with_suffix(".onnx")
    model = MLP.load(path)
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out} is the model itself; choose another --out")
    save_onnx(model, out, pixels=pixels)
    print(f"{out}: {signature(model, pixels)}")
    return out
