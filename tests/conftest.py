"""What several test files share: data, and derivatives by differences."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from unittest import mock

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.engines import compiled

from .libraries import Later

zarr = Later("zarr")


@pytest.fixture
def rng(pytestconfig):
    """Draw from the suite's seed: MLP_XP_SEED, which CI changes in every run."""
    return np.random.default_rng(pytestconfig.seed)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Whoever runs the suite may have a terminal; tests have none, unless they say how wide it is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def numpy_engine():
    """Train on the CPU without the compiled library, in child processes too."""
    before = os.environ.get("MLP_XP_COMPILED")
    os.environ["MLP_XP_COMPILED"] = "0"
    yield
    if before is None:
        del os.environ["MLP_XP_COMPILED"]
    else:
        os.environ["MLP_XP_COMPILED"] = before


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.needs("compiled")), "NumPy"])
def cpu_engine(request):
    """Train on the CPU by each engine in turn."""
    if request.param == "NumPy":
        request.getfixturevalue("numpy_engine")
    return request.param


@pytest.fixture(scope="session")
def zarr_threads(tmp_path_factory):
    """Let Zarr start its threads, which stay: one for the loop, and one that works."""
    with suppress(ImportError), zarr.config.set({"threading.max_workers": 1}):
        zarr.save_array(str(tmp_path_factory.mktemp("zarr") / "X.zarr"), np.zeros(3))


@pytest.fixture
def single_updates():
    """Let the compiled library do one update at a time, so that a pause can be after any of them."""
    with mock.patch.object(compiled, "_PIECE", 0), mock.patch.object(compiled, "_UNASKED", 0):
        yield


@pytest.fixture(autouse=True)
def small_workspace(request, monkeypatch):
    """The emulated CUDA fills and guards all memory that is taken, and its cuBLAS needs no 32 MiB to work in."""
    if request.config.getoption("emulated_cuda"):
        monkeypatch.setattr("mlp_xp.kernels.cuda.products._WORKSPACE", 4096)


@pytest.fixture
def emulated(request):
    """Return the module that counts what the emulated CUDA does and changes how it behaves."""
    if not request.config.getoption("emulated_cuda"):
        pytest.skip("looks into the emulated CUDA: python -m pytest --emulated-cuda")
    from .cuda import emulated

    return emulated


@pytest.fixture
def second_gpu():
    """Return the device string of a GPU that is not the current one, or skip."""
    try:
        return mx.devices.get_device("cuda:1").name
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def mnist():
    return mx.datasets.mnist()


@pytest.fixture(scope="session")
def mnist58():
    return mx.datasets.mnist(digits=(5, 8))


@pytest.fixture
def numerical_gradient():
    """Central differences of the mean loss over every parameter: f(model, X, y) -> (P,)."""

    def gradient(model, X, y, step=1e-5):
        theta, slopes = model.theta, np.empty(model.layout.size)
        for i in range(len(theta)):
            sides = []
            for sign in (1, -1):
                model.theta = theta.copy()
                model.theta[i] += sign * step
                sides.append(float(model.loss_and_gradient(X, y)[0]))
            slopes[i] = (sides[0] - sides[1]) / (2 * step)
        model.theta = theta
        return slopes

    return gradient


@pytest.fixture
def off_kinks():
    """Leave out rows on a kink, or so near that differences would reach across it: f(model, X, y) -> X, y."""

    def smooth(model, X, y):
        Z = model.forward(X).Z[1:]
        places = [*Z]  # where units are 0, and errors 0 or 1
        if model.task == "values":
            errors = np.abs(Z[-1] - y.reshape(Z[-1].shape))
            places += [errors, errors - 1]
        kept = np.min([np.abs(place).min(axis=1) for place in places], axis=0) > 1e-3
        return X[kept], y[kept]

    return smooth


@pytest.fixture
def flat():
    """Make one vector (P,) of a Gradient: f(model, gradient) -> (P,) on the host."""

    def join(model, gradient):
        host = model.device.to_host
        W, b = ([None, *map(host, arrays)] for arrays in (gradient.weights, gradient.biases))
        return model.layout.join(mx.params.Parameters(W, b))

    return join


@pytest.fixture
def fails(request, capsys):
    """Run the `main` of the test file, which must return 2 and print one line with `words`: f(words, *arguments)."""
    main = request.module.main
    name = main.__module__.rpartition(".")[2]

    def check(words, *arguments):
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(rf"mlp-xp {name}: .+\n", printed.err), printed.err
        assert words in printed.err

    return check


@pytest.fixture
def targets(rng):
    """Draw targets that an output of k units can have: f(output, n, k) -> (n,) or (n, k)."""

    def draw(output, n, k):
        task = mx.OUTPUTS[output].task
        if task == "classes":
            return rng.integers(0, k, n)
        return rng.integers(0, 2, (n, k)) if task == "labels" else rng.standard_normal((n, k))

    return draw
