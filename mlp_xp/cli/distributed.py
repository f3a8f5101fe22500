"""``--distributed``: one command in each of the processes that mpiexec started."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from ..runs.agreement import Agreement
from ..runs.signals import Interrupted
from .errors import complain, exit_code

__all__ = ["OPTION", "run_on_ranks"]

OPTION = "--distributed"  # belongs to a process, not to a run: no file keeps it
_ENDING = ("-h", "--help", "--dry-run")  # nothing is trained with one of them


def run_on_ranks(name: str, arguments: Sequence[str], command: Callable[[Agreement], object]) -> int:
    """Run a command, which is given the processes that share the work, and return its exit code.

    Without the option there is one. Of several, rank 0 alone prints.
    """
    try:
        comm = _world() if OPTION in arguments else None
    except ImportError as error:
        return complain(name, error, 2)

    def run() -> None:
        with Agreement(comm) as ranks:
            ranks.compare({option: "given" for option in _ENDING if option in arguments})
            try:
                command(ranks)
            except Interrupted as error:
                if ranks.size > 1:  # the signal that one rank got may be on its way to this one
                    signal.signal(error.signal, signal.SIG_IGN)
                raise

    return exit_code(name, run, silent=comm is not None and comm.rank > 0)


def _world() -> Any:
    """Return the communicator of all processes that mpiexec started; of this one, if nobody did."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter if there is no library of MPI
        raise ImportError(f"{OPTION} needs mpi4py ({error}): pip install 'mlp_xp[mpi]'") from None
    return MPI.COMM_WORLD
