"""`python -m bench.gpu_ceilings`: what this GPU can do at most, by cuBLAS and plain copies, and what a launch costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlp_xp.kernels.cuda.cublas import CuBLAS
from mlp_xp.kernels.cuda.graph import Graphs

__all__ = ["main", "measure"]

# name -> dtype of the factors, precision of float32 products
PRODUCTS = {
    "fp32": ("float32", "fp32"),
    "tf32": ("float32", "tf32"),
    "bf16": ("float32", "bf16"),
    "fp16": ("float16", "fp32"),
    "fp64": ("float64", "fp64"),
}
SIZE, FLOATS = 8192, 2**28  # of the large product, and of the copy
ROWS, INPUTS, UNITS = 60_000, 784, 196  # of the headline case
LAUNCHES = 200
TINY = 'extern "C" __global__ void __launch_bounds__(32) tiny(int* x) { if (threadIdx.x == 0) *x += 1; }'


def measure(cupy: Any) -> dict[str, Any]:
    """Return the ceilings as plain data: operations and bytes per second, and seconds."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        products = {name: _products(cupy, stream, *how) for name, how in PRODUCTS.items()}
        source, target = (cupy.ones(FLOATS, dtype=cupy.float32) for _ in range(2))
        copy = _seconds(cupy, stream, lambda: cupy.copyto(target, source), 10)
        eager, replay = _launches(cupy, stream)
    return {
        "gemm_flops": {name: peak for name, (peak, _) in products.items()},
        "bytes_per_second": 2 * source.nbytes / copy,
        "launch_seconds": eager,
        "launch_in_a_graph_seconds": replay,
        "layer_seconds": {name: layer for name, (_, layer) in products.items()},
    }


def _products(cupy: Any, stream: Any, dtype: str, precision: str) -> tuple[float, dict[str, float]]:
    """Return operations per second of a large product, and the seconds of the headline case's two."""
    blas = CuBLAS(stream.ptr, cupy.empty(32 * 2**20, cupy.uint8), precision=precision)
    n, result = (SIZE // 2, dtype) if dtype == "float64" else (SIZE, "float32")
    A, B, C = (cupy.ones((n, n), dtype=t) for t in (dtype, dtype, result))
    peak = 2 * n**3 / _seconds(cupy, stream, lambda: blas.gemm(A, B, C), 5)
    X, W, dZ = (cupy.ones(s, dtype=dtype) for s in ((ROWS, INPUTS), (INPUTS, UNITS), (ROWS, UNITS)))
    Z, dW = cupy.empty((ROWS, UNITS), result), cupy.empty((INPUTS, UNITS), result)
    layer = {"forward": _seconds(cupy, stream, lambda: blas.gemm(X, W, Z), 10)}
    layer["weight gradient"] = _seconds(cupy, stream, lambda: blas.gemm(X.T, dZ, dW), 10)
    return peak, layer


def _launches(cupy: Any, stream: Any) -> tuple[float, float]:
    """Return the seconds of a launch by the host, and of one in a graph."""
    tiny = cupy.RawKernel(TINY, "tiny")
    number, graphs = cupy.zeros(1, dtype=cupy.int32), Graphs(cupy)

    def launches() -> None:
        for _ in range(LAUNCHES):
            tiny((1,), (32,), (number,))

    eager = _seconds(cupy, stream, launches, 10) / LAUNCHES
    for _ in range(2):
        graphs.run("launches", launches)
    return eager, _seconds(cupy, stream, lambda: graphs.run("launches", launches), 10) / LAUNCHES


def _seconds(cupy: Any, stream: Any, work: Callable[[], object], repeats: int) -> float:
    """Return the best time of a call by the GPU's clock, after one that only warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = stream.record()
        work()
        end = stream.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return float(min(times))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_ceilings", description="What this GPU can do at most.")
    parser.add_argument("--out", type=Path, required=True, help="folder for ceilings.json")
    options = parser.parse_args(arguments)
    try:
        import cupy

        if not cupy.cuda.is_available():
            raise ImportError("no CUDA driver or no GPU")
    except ImportError as error:
        print(f"there are no ceilings to measure here: {error}", file=sys.stderr)
        return 2
    text = json.dumps(measure(cupy), indent=1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ceilings.json").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
