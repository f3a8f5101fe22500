"""Python runs this at its start: a child of a process with the emulated CUDA has it as well."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("emulated_cuda_loader", Path(__file__).parents[1] / "loader.py")
_loader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loader)
_loader.install()
