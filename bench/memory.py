"""`python -m bench.memory`: the most memory that training takes, each contender alone in a fresh process.

On the CPU: the peak of the resident set beyond what it was after the imports and the loading of the byte images. On a
GPU: what the driver counts as used beyond the same moment, by any library and the CUDA context included; allocators
keep what they once took, so the end shows the peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .contender import CONTENDERS, build
from .machine import limit_threads
from .problem import Problem

__all__ = ["main", "peak_megabytes"]

EPOCHS = 2  # the second epoch shows what the first one left behind


def peak_megabytes(name: str, problem: Problem, device: str, threads: int) -> float:
    """Return the contender's peak in MB (1e6 bytes), measured in a process of its own.

    Raises
    ------
    RuntimeError
        If the contender failed there, or reached another loss than float64; the message is what it printed.
    """
    settings = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem) if f.name not in ("X", "y")}
    with tempfile.TemporaryDirectory() as folder:
        # loading an .npy file leaves no peak of its own, unpacking the data set would
        np.save(Path(folder, "X.npy"), problem.X)
        np.save(Path(folder, "y.npy"), problem.y)
        task = json.dumps({"name": name, "device": device, "threads": threads, "folder": folder, "settings": settings})
        command = [sys.executable, "-m", "bench.memory", "--child", task]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed while its memory was measured:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def _child(task: str) -> None:
    """Do in this process what :func:`peak_megabytes` asks for, and print the megabytes."""
    wanted = json.loads(task)
    limit_threads(wanted["threads"])
    importlib.import_module(f"bench.peers.{CONTENDERS[wanted['name']][0]}")
    X, y = (np.load(Path(wanted["folder"], f"{part}.npy")) for part in ("X", "y"))
    settings = {**wanted["settings"], "sizes": tuple(wanted["settings"]["sizes"])}
    problem = Problem(X=X, y=y, **settings)
    used = _resident_peak if wanted["device"] == "cpu" else _device_used
    before = used()
    contender = build(wanted["name"], problem, wanted["device"], wanted["threads"])
    contender.run(EPOCHS)
    after = used()
    contender.check()
    print((after - before) / 1e6)


def _resident_peak() -> int:
    """Bytes, from the kernel's high-water mark, which starts anew with each program, as getrusage's does not."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        raise RuntimeError(f"peak memory is read from /proc, which only Linux has ({error})") from error
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _device_used() -> int:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return sum(map(int, mebibytes)) * 2**20  # of all GPUs: nvidia-smi may number them in another order than CUDA


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Peak memory, one process each.")
    parser.add_argument("--case", default="full-batch")
    parser.add_argument("--contenders", default="ours,ours-dense,torch,torch-compile,jax-loop,sklearn,textbook")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        _child(options.child)
        return 0
    from .cases import case

    problem, threads = case(options.case), limit_threads(options.threads)
    for name in options.contenders.split(","):
        try:
            print(f"{name:20s} {peak_megabytes(name, problem, options.device, threads):8.0f} MB")
        except RuntimeError as error:
            print(f"{name:20s} {str(error).strip().splitlines()[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
