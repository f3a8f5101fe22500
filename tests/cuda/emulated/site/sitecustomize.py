"""Python runs this at its start: a child of a process with the emulated CUDA has it as well."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("tests.cuda.emulated.loader", Path(__file__).parents[1] / "loader.py")
_loader = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _loader  # for a child that looks into the emulated CUDA
_spec.loader.exec_module(_loader)
_loader.install()
