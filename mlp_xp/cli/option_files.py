"""Files that set options of the command: TOML, or the config.json of a run."""

from __future__ import annotations

import json
import tomllib
from typing import Any

__all__ = ["read_options"]

MAX_TOML = 1 << 14  # bytes; with MAX_DOTS, for tomllib takes quadratic time and memory for a.a.a...
MAX_DOTS = 64  # in a line
MAX_JSON = 1 << 20  # bytes; config.json lists the names of up to 65,536 classes
NOT_OPTIONS = ("labels", "samples")  # what a run's config.json says of its data


def read_options(path: str) -> dict[str, Any]:
    """Return what a TOML file or a run's config.json sets.

    Raises
    ------
    ValueError
        If it cannot be read, is neither, or is too long.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_JSON + 1)
    except OSError as error:
        raise ValueError(f"cannot read the configuration file {path}: {error.strerror}") from None
    is_json = content.lstrip().startswith(b"{")
    limit = MAX_JSON if is_json else MAX_TOML
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit} bytes, the most allowed; --config takes a few lines of TOML")
    if not is_json and any(line.count(b".") > MAX_DOTS for line in content.splitlines()):
        raise ValueError(f"{path} has a line with more than {MAX_DOTS} dots; --config takes lines such as lr = 0.01")
    try:
        text = content.decode("utf-8-sig")
        table = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a {'JSON' if is_json else 'TOML'} file: {error}") from None
    if is_json:  # a run is repeated in a folder of its own
        left_out = (*NOT_OPTIONS, "out", "resume")
        table = {name: value for name, value in table.items() if name not in left_out and value is not None}
    return table
