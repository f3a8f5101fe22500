"""Several processes with MPI, for a function of a test module: ``python -m tests.mpi.launch`` is what each one runs."""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def on_ranks(count, function, *arguments, timeout=300):
    """Return what ``function(comm, *arguments)`` returns in each of `count` processes.

    The function is one of a module in this folder. If it raises in one process, all end, and the test fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, results = Path(folder, "call"), Path(folder, "results")
        module = "tests.mpi." + function.__module__.rpartition(".")[2]
        call.write_bytes(pickle.dumps((module, function.__name__, arguments)))
        command = [MPIEXEC, "-n", str(count), sys.executable, "-m", "tests.mpi.launch", str(call), str(results)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return pickle.loads(results.read_bytes())


def main(call, results):
    """Do the call; the first process writes what all of them returned."""
    from mpi4py import MPI

    module, name, arguments = pickle.loads(Path(call).read_bytes())
    try:
        returned = MPI.COMM_WORLD.gather(getattr(importlib.import_module(module), name)(MPI.COMM_WORLD, *arguments))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
    if MPI.COMM_WORLD.rank == 0:
        Path(results).write_bytes(pickle.dumps(returned))


if __name__ == "__main__":
    main(*sys.argv[1:])
