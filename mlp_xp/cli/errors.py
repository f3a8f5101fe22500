"""What the commands share: how an error becomes one line and an exit code, and what may reach a terminal."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Collection
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ..fit import DivergenceError
from ..runs.agreement import RankError
from ..runs.folder import RunFolder
from ..runs.signals import Interrupted

__all__ = ["Parser", "complain", "did_you_mean", "exit_code", "model_file", "printable"]

MAX_LENGTH = 1000  # characters of a line that quotes what a file or a user said
PACKAGE = str(Path(__file__).parents[1])


class Parser(argparse.ArgumentParser):
    """Raises a ValueError where argparse would print the usage and exit; options are never abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError, with the option that was probably meant."""
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        hint = did_you_mean(unknown[1], re.findall(r"--[a-z0-9-]+", self.format_help())) if unknown else ""
        raise ValueError(f"{message}{hint}; --help lists the options")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ``", did you mean X?"`` if one of the names that are known is spelled much like `name`, else ``""``."""
    names = {each.lstrip("-"): each for each in known}  # the dashes of options would make any two of them alike
    close = get_close_matches(name.lstrip("-"), names, n=1, cutoff=0.7)
    return f", did you mean {names[close[0]]}?" if close else ""


def printable(text: object, most: int = MAX_LENGTH) -> str:
    r"""Return foreign text as one line of about `most` characters at most, which every terminal shows as it is.

    What is not printable, such as an escape sequence that recolors the terminal or renames its window, is escaped as in
    a Python string. So are letters that standard output cannot encode. The middle of a long text is left out.

    Examples
    --------
    >>> print(printable("run\x1b[31m"))
    run\x1b[31m
    """
    line = str(text)
    if len(line) > most:
        line = f"{line[: most - 200]} ... {line[-200:]}"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def exit_code(name: str, command: Callable[[], object], silent: bool = False) -> int:
    """Run a command and return its exit code.

    0 if all went well, 1 if the training diverged, 2 if the input was wrong, 70 for a bug of ours, 130 after Ctrl-C,
    143 after SIGTERM, and 141, as from SIGPIPE, if nobody reads the output any more. An error is one line on standard
    error. With the environment variable ``MLP_XP_TRACEBACK`` set, its traceback comes first. A `silent` command prints
    nothing: of a distributed run, the ranks above 0.
    """
    with ExitStack() as streams:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            # None or closed: a service, a program without a console, 2>&-
            if silent or getattr(stream, "closed", True):
                streams.enter_context(redirect(streams.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        try:
            return _run(name, command)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
            return 141


def _run(name: str, command: Callable[[], object]) -> int:
    try:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"mlp_xp\.")  # DivergenceError tells
                warnings.showwarning = lambda message, *place: _say(name, f"warning: {message}")
                command()
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        raise
    except DivergenceError as error:
        return complain(name, error, 1)
    except MemoryError as error:
        advice = "use fewer samples, smaller layers or a smaller --batch-size, or a machine with more memory"
        return complain(name, f"out of memory ({error or 'no size known'}); {advice}", 2)
    except (OSError, ImportError) as error:
        return complain(name, error, 2)
    except Interrupted as error:
        return complain(name, f"{error}; go on with: {_resume(error.folder)}", 128 + error.signal)
    except KeyboardInterrupt:
        return complain(name, "interrupted", 130)
    except Exception as error:
        if (isinstance(error, ValueError) and _is_meant(error)) or (isinstance(error, RankError) and error.foreseen):
            return complain(name, error, 2)
        if "start new thread" in str(error):  # RuntimeError of the system's, which has no class or number of its own
            return complain(name, f"{error}; use --threads 1, or end other programs", 2)
        traceback.print_exc()
        return complain(name, "this is a bug of mlp_xp, not of your input; please report it with the lines above", 70)
    return 0


def _is_meant(error: ValueError) -> bool:
    """Tell whether a ``raise`` statement of this package made the error; otherwise NumPy or Python stumbled in it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return not place.line or (place.line.startswith("raise ") and place.filename.startswith(PACKAGE))


def model_file(source: Path) -> Path:
    """Return the model file of a run folder; whatever is no folder is a model file itself.

    Raises
    ------
    ValueError
        If the run is not finished.
    """
    run = RunFolder(source)
    if not source.is_dir():
        return source
    if not run.model.exists() and run.checkpoint.exists():
        raise ValueError(
            f"{source}: this run is not finished, there is no {run.model.name} yet; go on with: {_resume(str(source))}"
        )
    return source / run.model.name


def _resume(folder: str) -> str:
    return f"python -m mlp_xp.train --resume {shlex.quote(folder)}"


def complain(name: str, error: object, code: int) -> int:
    """Print an error as one line on standard error, and return the exit code."""
    if os.environ.get("MLP_XP_TRACEBACK") and isinstance(error, BaseException):
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    _say(name, error)
    return code


def _say(name: str, message: object) -> None:
    with suppress(OSError):  # standard error is full or broken; the exit code still tells
        print(f"mlp-xp {name}: {printable(' '.join(str(message).split()))}", file=sys.stderr)
