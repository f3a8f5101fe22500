"""One file a library, each set up as its own experts would; `make(problem, device, threads)` returns a contender."""

import os

# JAX would take three quarters of a GPU's memory from the others; it reads this when it is imported
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
