"""What the commands share: an error is one line on standard error and an exit code, a run folder means its model."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..fit import DivergenceError
from ..runs.record import FILE
from ..runs.signals import Interrupted

__all__ = ["Parser", "exit_code", "model_file"]


class Parser(argparse.ArgumentParser):
    """Raises a ValueError where argparse would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def exit_code(name: str, command: Callable[[], object]) -> int:
    """Run a command and return its exit code.

    0 where all went well, 1 where the training diverged, 2 where the input was wrong, 130 after Ctrl-C, 143 after
    SIGTERM, and 141, as from SIGPIPE, where nobody reads the output any more.
    """
    try:
        try:
            with warnings.catch_warnings():  # of what overflows, the DivergenceError says more
                warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"mlp_xp\.")
                command()
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except DivergenceError as error:
        return _complain(name, error, 1)
    except MemoryError as error:
        advice = "use fewer samples, smaller layers or a smaller --batch-size, or a machine with more memory"
        return _complain(name, f"out of memory ({error or 'no size known'}); {advice}", 2)
    except (ValueError, OSError, ImportError) as error:
        return _complain(name, error, 2)
    except Interrupted as error:
        return _complain(name, f"{error}; go on with: {_resume(error.folder)}", 128 + error.signal)
    except KeyboardInterrupt:
        return _complain(name, "interrupted", 130)
    return 0


def model_file(source: Path) -> Path:
    """Return the model file of a run folder; whatever is no folder is a model file itself.

    Raises
    ------
    ValueError
        If the run is not finished.
    """
    if not source.is_dir():
        return source
    path = source / "model.safetensors"
    if not path.exists() and (source / FILE).exists():
        raise ValueError(
            f"{source}: this run is not finished, there is no {path.name} yet; go on with: {_resume(str(source))}"
        )
    return path


def _resume(folder: str) -> str:
    return f"python -m mlp_xp.train --resume {shlex.quote(folder)}"


def _complain(name: str, error: object, code: int) -> int:
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    print(f"mlp-xp {name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
