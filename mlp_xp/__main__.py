"""``mlp-xp train``, ``mlp-xp predict`` and so on: the commands under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .cli.errors import did_you_mean, printable

__all__ = ["main"]

COMMANDS = {
    "train": "train a network",
    "predict": "classify images with a trained network",
    "export": "write a trained network for other programs",
    "trace": "show formulas and shapes of a forward and backward pass",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        return int(import_module(f"mlp_xp.{given[0]}").main(given[1:]))
    if given[:1] == ["--version"]:
        print(f"mlp_xp {__version__}")
        return 0
    if given and given[0] not in ("-h", "--help"):
        hint = did_you_mean(given[0], COMMANDS)
        problem = f"unknown command {given[0]!r}{hint}; choose from {', '.join(COMMANDS)}"
        print(f"mlp-xp: {printable(problem)}", file=sys.stderr)
        return 2
    usage = "\n".join(f"  mlp-xp {name:10s}{text}" for name, text in COMMANDS.items())
    print(f"usage:\n{usage}\n\nmlp-xp COMMAND --help lists a command's options")
    return 0 if given else 2


if __name__ == "__main__":
    sys.exit(main())
