"""The folder of a run: the only module that knows which files are in it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from ..callbacks import History
from ..files import FolderLock, open_regular, probe_writable, replace_file, resolve
from ..files.tensors import CheckpointError
from ..mlp import MLP
from .record import FILE, Record, check_same, read, size, write

__all__ = ["FinishedRun", "RunFolder"]

MAX_BYTES = 1 << 20  # of a JSON file
_METRICS = 16  # that there is surely room for in a checkpoint


class FinishedRun(NamedTuple):
    """What a finished run leaves for those who use it.

    Attributes
    ----------
    model : MLP
    labels : list of str
        Names of the classes.
    config : dict
        What the run was started with; empty for a model file that is in no run folder.
    """

    model: MLP
    labels: list[str]
    config: dict[str, Any]


class RunFolder:
    """The files of a run: ``with RunFolder(path) as run: ...``; the block ends with the lock of the folder, if any.

    Links in a run folder are refused, because the folder may come from somebody else: what they lead to is not ours to
    write. The folder itself may be one.

    Parameters
    ----------
    path : path
        ``~`` is expanded, and a relative path keeps its meaning if the process changes its directory.

    Attributes
    ----------
    path : Path
    checkpoint, model, history, config, environment, plots : Path
        What is in it. The last one is a folder.

    Examples
    --------
    >>> import mlp_xp as mx, tempfile
    >>> from mlp_xp.runs.folder import RunFolder
    >>> (X, y), model = mx.datasets.xor(), mx.MLP([2, 4, 2])
    >>> with RunFolder(tempfile.mkdtemp()) as run:
    ...     history = mx.fit(model, X, y, epochs=3, checkpoint=mx.Checkpoint(run))
    ...     run.note({"labels": ["no", "yes"]}, {"python": "3.14"})
    ...     run.finish(model, history)
    >>> RunFolder.load(run.path).labels
    ['no', 'yes']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolve(path)
        self.checkpoint = self.path / FILE
        self.model = self.path / "model.safetensors"
        self.history = self.path / "history.csv"
        self.config = self.path / "config.json"
        self.environment = self.path / "env.json"
        self.plots = self.path / "plots"
        self._open = ExitStack()
        self._lock: FolderLock | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def check_unused(self) -> None:
        """Raise a ValueError if there is anything but what a run leaves that was killed before its first save."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self} is not a folder; choose another --out")
        if self.checkpoint.exists():
            raise ValueError(f"{self} has a run already; go on with it by --resume {self}, or choose another --out")
        names = {path.name for path in self.path.glob("*") if not path.match(".mlp_xp-*.tmp")}
        begun = {self.environment.name}
        if names - {".lock", *begun} - ({self.config.name} if begun <= names else set()):
            raise ValueError(f"{self} is already there and not empty; choose another --out, or remove it")

    def resume(self, settings: Mapping[str, Any]) -> Record:
        """Lock the folder, and return the record of the run in it.

        Raises
        ------
        ValueError
            If there is none, it is damaged, or its settings are others; the message lists them.
        OSError
            If the folder is in use, or cannot be read.
        """
        if not self.checkpoint.is_file():
            raise ValueError(f"there is no {self.checkpoint} to resume from; start the run without resume")
        self._acquire()
        record = read(self._own(self.checkpoint))
        check_same(self.path, record.settings, settings)
        return record

    def begin(self, record: Record) -> None:
        """Find out before the training whether saving will work, with a record like those to come.

        A new run makes the folder and locks it.

        Raises
        ------
        ValueError
            If the folder has a run that was not resumed.
        CheckpointError
            If something in the record cannot be saved.
        OSError
            If the folder is in use, cannot be written, or is too full for two checkpoints, which there are while one
            replaces the other, and the model.
        """
        if self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            if self.checkpoint.exists():
                raise ValueError(
                    f"{self.checkpoint} is of an earlier run; resume it, remove it, or choose another folder"
                )
        try:
            probe_writable(self.path, 2 * size(_grown(record)) + record.snapshot.theta.nbytes)
        except CheckpointError as error:
            raise CheckpointError(f"this run could not be saved in {self}: {error}") from None

    def save(self, record: Record) -> None:
        """Replace the checkpoint.

        Raises
        ------
        OSError
            If it cannot be written, or the folder at the path is not the one that was locked.
        """
        self._check()
        write(self._own(self.checkpoint), record)

    def note(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write what the run was started with, and what it runs on.

        A run that was resumed ran on several: the others are in the list ``before``, the first one first.
        """
        self._check()
        then: dict[str, Any] = {}
        if self.environment.exists():
            with suppress(ValueError):  # damaged: nothing to keep
                then = _read_json(self._own(self.environment))
        before = then.pop("before", [])
        if then and then != environment:
            before = [*before, then]
        now = {**environment, **({"before": before} if before else {})}
        self._write_json(self.environment, now)
        self._write_json(self.config, config)

    def finish(self, model: MLP, history: History) -> None:
        """Write what is left when the training is over: the model and the history."""
        self._check()
        text = history.to_csv().encode()
        replace_file(self._own(self.history), [memoryview(text)], verify=lambda file: None, follow_links=False)
        model.save(self._own(self.model))

    def plots_folder(self) -> Path:
        """Return the folder for pictures, having made sure that nothing in it leads elsewhere."""
        self._own(self.plots)
        for path in self.plots.glob("*"):
            self._own(path)
        return self.plots

    def check_replaceable(self) -> None:
        """Raise an OSError if something in this folder cannot be replaced by what a run leaves at its end."""
        for path in (self.history, self.model, self.config, self.environment, *self.plots_folder().glob("*")):
            if self._own(path).exists() and not path.is_file():
                raise OSError(errno.EEXIST, "no file, where a run leaves one; remove it", str(path))
        if self.plots.exists() and not self.plots.is_dir():
            raise OSError(errno.EEXIST, "no folder, where a run leaves one; remove it", str(self.plots))

    def close(self) -> None:
        """Release the lock."""
        self._open.close()
        self._lock = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> FinishedRun:
        """Read a finished run; a path that is not a folder is a model file by itself.

        Raises
        ------
        ValueError
            If a file is damaged or does not fit the model, or the run is not finished.
        OSError
            If a file cannot be read.
        """
        run = cls(path)
        if not run.path.is_dir():
            model = MLP.load(run.path, device)
            return FinishedRun(model, [str(label) for label in range(_classes(model))], {})
        if not run.model.exists() and run.checkpoint.exists():
            raise ValueError(f"{run}: this run is not finished, it has no {run.model.name} yet; resume it first")
        model = MLP.load(run._own(run.model), device)
        config = _read_json(run._own(run.config))
        return FinishedRun(model, _labels(run.config, config, model), config)

    def _acquire(self) -> None:
        self._lock = self._open.enter_context(FolderLock(self.path))

    def _check(self) -> None:
        if self._lock is None:
            self._acquire()
        else:
            self._lock.check()

    def _own(self, path: Path) -> Path:
        """Return the path of a file or folder in this folder, if it is not a link."""
        if path.is_symlink():
            problem = "a link, but a run folder must hold its own files; put what it leads to in its place"
            raise OSError(errno.ELOOP, problem, str(path))
        return path

    def _write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        text = json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n"
        content = text.encode(errors="backslashreplace")  # \udce4 of a name that is no UTF-8 is JSON's own escape
        replace_file(self._own(path), [memoryview(content)], verify=lambda file: None, follow_links=False)


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path, MAX_BYTES) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file of a run ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object, as a run writes it")
    return value


def _grown(record: Record) -> Record:
    """Return a record with the tensors that one gets in the course of a run: the best parameters, and metrics."""
    empty = np.zeros(0)
    history = {**{f"metric_{i}": empty for i in range(_METRICS)}, **record.history}
    theta = record.snapshot.theta
    return record._replace(history=history, callbacks=[{"theta": theta, **each} for each in record.callbacks])


def _classes(model: MLP) -> int:
    return max(2, model.sizes[-1])


def _labels(path: Path, config: Mapping[str, Any], model: MLP) -> list[str]:
    labels: Sequence[Any] | Any = config.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.isprintable() for label in labels):
        raise ValueError(f"{path}: 'labels' must be a list of printable names, one for each class")
    if model.task != "values" and len(labels) != _classes(model):
        raise ValueError(f"{path}: there are {len(labels)} 'labels', but the model has {_classes(model)} classes")
    return labels
