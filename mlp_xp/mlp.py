"""The model that people hold in their hands: parameters, gradients, predictions, files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np

from .checks import check_choice, check_seed, check_sizes
from .convert.tensors import read_model, write_model
from .convert.torch import Layers, make_sequential, read_sequential
from .devices import Array, Device, check_precision, get_device, is_foreign
from .files.tensors import CheckpointError
from .inference import Inference, Predictor
from .kernels import GenericKernels, kernels_for
from .kernels.functions import softmax
from .metrics import read_outputs
from .model import Network, check_activations, forward, grad_sum
from .objective import OUTPUTS, Objective, Targets, check_output
from .params import Forward, Gradient, Layout, Parameters, check_like, check_vector, fitting_init, initial_theta
from .rows.opening import open_rows
from .rows.source import Rows

__all__ = ["MLP", "Forward", "Gradient"]

_MADE_ANEW = "kernels", "_parameters", "_predictor"  # where a copy arrives


class MLP:
    """A multilayer perceptron.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, input first, such as ``[784, 196, 10]``.
    activation : str or sequence of str
        ``"relu"``, ``"leaky_relu"``, ``"tanh"``, ``"sigmoid"`` or ``"identity"``: one, or one per hidden layer.
    output : str
        ``"softmax"`` (softmax cross-entropy on linear outputs), ``"sigmoid"`` (binary cross-entropy, any number of
        independent outputs), ``"identity"`` (half mean squared error), ``"softmax_of_sigmoid"`` (softmax cross-entropy
        on sigmoid outputs), ``"sigmoid_mse"`` (half mean squared error on sigmoid outputs) or ``"perceptron"`` (the
        perceptron criterion: how far linear outputs are on the wrong side of zero).
    init : str, optional
        Distribution of the first weights, a key of :data:`mlp_xp.params.INITIALIZERS`. None takes the one that fits the
        activation: ``"he_normal"`` with ``"relu"`` or ``"leaky_relu"`` in a hidden layer, else ``"xavier_normal"``.
    dtype : {"float32", "float64"}
        Everything is computed and stored in it.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"torch"``, ``"torch:DEVICE"``, ``"jax"`` or ``"strict"``.
    seed : int
        Decides the first weights, the order of mini-batches and what dropout leaves out, alike on every backend.
    precision : str, optional
        How training and prediction multiply, a key of :data:`mlp_xp.devices.PRECISIONS`. ``"tf32"``, ``"bf16"`` and
        ``"fp16x2"`` (for uint8 pixels) are faster, and CUDA only. None keeps all digits of `dtype`. Like the device, it
        is not saved with the model.

    Attributes
    ----------
    pixels : bool or None
        Whether the training data were pixels: uint8, which counts as x / 255. None before any training. It is saved
        with the model, and tells readers of files how to take whole numbers.

    Raises
    ------
    ValueError
        If an argument is unknown or does not fit, or the device is not available.

    Examples
    --------
    >>> model = MLP([2, 3, 1], activation="tanh", output="sigmoid")
    >>> [W.shape for W in model.weights]
    [(3, 2), (1, 3)]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Sequence[str] = "relu",
        output: str = "softmax",
        init: str | None = None,
        dtype: str = "float32",
        device: str | Device = "cpu",
        seed: int = 0,
        precision: str | None = None,
    ) -> None:
        self.sizes = check_sizes(sizes)
        self.activation = check_activations(activation, len(self.sizes) - 2)
        self.output = output
        self.objective = Objective(check_output(output, self.sizes[-1]))
        self.init = fitting_init(self.activation) if init is None else init
        self.dtype = check_choice("dtype", getattr(dtype, "__name__", str(dtype)), ("float32", "float64"))
        self.seed = check_seed(seed)
        self.layout = Layout(self.sizes)
        self.network = Network(("", *self.activation, self.objective.output.activation), self.objective)
        self.pixels: bool | None = None
        self.device = get_device(device, self.dtype)
        self.precision = check_precision(precision, self.dtype, self.device)
        self.kernels = kernels_for(self.device, self.dtype, self.precision)
        self.theta = initial_theta(self.layout, self.init, self.seed, self.dtype)

    def __repr__(self) -> str:
        return (
            f"MLP({list(self.sizes)}, activation={self.activation}, output={self.output!r}, "
            f"dtype={self.dtype!r}, device={self.device.name!r}): {self.layout.size:,} parameters"
        )

    @property
    def task(self) -> str:
        """What the outputs are: ``"classes"``, one of n_L, ``"labels"``, each yes or no, or ``"values"``."""
        return self.objective.output.task

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of: parameters travel by way of the host, kernels not at all."""
        state = {name: value for name, value in self.__dict__.items() if name not in _MADE_ANEW}
        return state | {"_theta": self.device.to_host(self.theta).copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.device.prepare(self.dtype)
        self.kernels = kernels_for(self.device, self.dtype, self.precision)
        self.theta = state["_theta"]

    @property
    def theta(self) -> Array:
        """All parameters (P,), as an array of the device. Assigning checks shape and dtype, and does not copy."""
        return self._theta

    @theta.setter
    def theta(self, value: Any) -> None:
        self._theta = check_vector("theta", self.device.asarray(value), self.layout.size, self.kernels.dtype)
        self.__dict__.pop("_parameters", None)

    @cached_property
    def _parameters(self) -> Parameters:
        """W[l] and b[l] of theta: views, if the library has views."""
        with self.device.active():
            return self.layout.split(self.theta, self.device.xp)

    @property
    def weights(self) -> list[np.ndarray[Any, Any]]:
        """Copies of W[1] (n_1, n_0) to W[L] (n_L, n_{L-1}) on the host; assigning copies too."""
        return [W.copy() for W in self.layout.split(self.device.to_host(self.theta)).W[1:]]

    @weights.setter
    def weights(self, values: Sequence[Any]) -> None:
        W = check_like("weights", values, self.weights)
        self.theta = self.layout.join(Parameters([None, *W], [None, *self.biases]))

    @property
    def biases(self) -> list[np.ndarray[Any, Any]]:
        """Copies of b[1] (n_1,) to b[L] (n_L,) on the host; assigning copies too."""
        return [b.copy() for b in self.layout.split(self.device.to_host(self.theta)).b[1:]]

    @biases.setter
    def biases(self, values: Sequence[Any]) -> None:
        b = check_like("biases", values, self.biases)
        self.theta = self.layout.join(Parameters([None, *self.weights], [None, *b]))

    def open(self, X: Any) -> Rows:
        """Check samples (n, n_0) once, and return them as rows; rows that were opened before are returned as they are.

        Raises
        ------
        ValueError, TypeError
            If they do not fit the model, see :func:`mlp_xp.rows.opening.open_rows`.
        """
        with self.device.active() if is_foreign(X) else nullcontext():
            rows = open_rows(X, self.sizes[0], self.device, self.dtype, self.pixels)
        if self.precision == "fp16x2" and not rows.pixels:
            raise ValueError(
                f"precision 'fp16x2' is exact for uint8 pixels only, got {rows.dtype}; "
                "pass those, or use 'tf32' or 'fp32'"
            )
        return rows

    def targets(self, y: Any, n: int) -> Targets:
        """Check the targets of n rows once; what was checked before is returned as it is."""
        return self.objective.targets(y, n, self.sizes[-1], self.device, self.dtype)

    def _array(self, rows: Rows) -> Array:
        """Return all rows as one array of the device."""
        return rows.to(self.device).block(0, rows.shape[0])

    def forward(self, X: Any) -> Forward:
        """Return every Z[l] and A[l] (n, n_l) for the rows of `X` (n, n_0), as arrays of the device."""
        k = GenericKernels(self.device.xp, self.dtype)
        with self.device.active():
            params = self._parameters
            A, _ = forward(self.network, k, params, self._array(self.open(X)))
            Z = [k.affine(A[l - 1], params.W[l], params.b[l]) for l in range(1, len(A))]
        return Forward([None, *Z], A)

    def loss_and_gradient(self, X: Any, y: Any) -> tuple[Array, Gradient]:
        """Return the mean loss over the rows and its gradient.

        Parameters
        ----------
        X : array (n, n_0)
            Pixels (uint8), which count as X / 255, or numbers, which count as they are.
        y : array
            Labels (n,) or one-hot rows (n, n_L) for the softmax outputs, else targets (n, n_L), or (n,) for one unit.

        Returns
        -------
        loss : 0-d array of the device
        gradient : Gradient

        Raises
        ------
        ValueError
            If a shape, a label or a value does not fit.
        """
        with self.device.active():
            rows, xp = self.open(X), self.device.xp
            n = rows.shape[0]
            X, y = self._array(rows), self.device.asarray(self.targets(y, n).y)
            zero = self.layout.split(self.device.zeros((self.layout.size,), self.dtype), xp)
            loss, dZ = grad_sum(self.network, GenericKernels(xp, self.dtype), self._parameters, X, y, into=zero)
            return loss / n, Gradient([dW / n for dW in zero.W[1:]], [db / n for db in zero.b[1:]], dZ[1:])

    def outputs(self, X: Any, ranks: Any = None) -> np.ndarray[Any, Any]:
        """Return A[L] (n, n_L) on the host: logits, sigmoids or values, depending on `output`.

        It works on some rows at a time, and on fewer if a device is short of memory. On the CPU the result has the same
        bits for any number of threads, and of :class:`mlp_xp.engines.Ranks`, if all of them call this to share it.
        """
        return self._inference().outputs(self.open(X), self.sizes[-1], ranks)

    def _inference(self) -> Inference:
        return Inference(
            self.network, self.objective, self.theta, self._parameters, self.kernels, self._predictor, self.device,
            self.dtype,
        )  # fmt: skip

    @cached_property
    def _predictor(self) -> Predictor | None:
        return Predictor.of(self.device, self.layout, self.network, self.dtype)

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Return probabilities (n, n_L): of the classes (rows add up to 1), or of each output being 1.

        Raises
        ------
        ValueError
            If the outputs are not probabilities.
        """
        probability = self.objective.output.probability
        if not probability:
            raise ValueError(f"output {self.output!r} makes no probabilities; use predict")
        host, A = GenericKernels(np, self.dtype), self.outputs(X)
        return np.asarray(softmax(np, A) if probability == "softmax" else host.activate(probability, A))

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Return class labels (n,), 0/1 labels (n, n_L) or values (n, n_L); with one output unit, (n,)."""
        return read_outputs(self.outputs(X), self.task)

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy (all labels of a row are right), or for values R^2, on average over the outputs."""
        return self.evaluate(X, y)[1]

    def evaluate(self, X: Any, y: Any, ranks: Any = None) -> tuple[float, float]:
        """Return the mean loss and the score on the rows of `X` (n, n_0) with targets `y`; `ranks` as for `outputs`."""
        rows = self.open(X)
        return self._inference().evaluate(rows, self.targets(y, rows.shape[0]).y, self.sizes[-1], ranks)

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make this model again, as plain data."""
        rest = {name: getattr(self, name) for name in ("output", "init", "dtype", "seed")}
        return {"sizes": list(self.sizes), "activation": list(self.activation), **rest}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the weights and the configuration to one safetensors file: all of it, or nothing.

        Tensors are named ``layers.0.weight``, ``layers.0.bias`` and so on, with the shapes of ``torch.nn.Linear``:
        PyTorch reads them with ``model.to_torch().load_state_dict(safetensors.torch.load_file(path))``.
        """
        write_model(path, self.config, self.pixels, self.weights, self.biases)

    @classmethod
    def load(cls, path: str | PathLike[str], device: str | Device = "cpu") -> MLP:
        """Read a model that :meth:`save` wrote, onto any device.

        Raises
        ------
        ValueError
            If the file is damaged, is not a model, or contradicts itself.
        """
        config, pixels, W, b = read_model(path)
        try:
            model = cls(**config, device=get_device(device, config["dtype"]))
            model.weights, model.biases, model.pixels = W, b, pixels
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not describe a model: {error}") from None
        return model

    def to_torch(self) -> Any:
        """Return a ``torch.nn.Sequential`` with copies of the parameters, on the CPU, that computes :meth:`outputs`.

        It takes floats: uint8 pixels divided by 255. Its last layer is followed by a Sigmoid if the outputs are
        sigmoids, and otherwise by nothing, which is what ``CrossEntropyLoss`` and ``BCEWithLogitsLoss`` take.
        """
        return make_sequential(Layers(self.weights, self.biases, list(self.network.g[1:])))

    @classmethod
    def from_torch(cls, module: Any, output: str = "softmax", device: str | Device = "cpu", seed: int = 0) -> MLP:
        """Return an MLP with copies of the parameters of a ``torch.nn.Sequential``, such as :meth:`to_torch` makes.

        Raises
        ------
        ValueError
            If it contains anything but Linear modules and the activations known here, or ends in another activation
            than the output does.
        """
        W, b, g = read_sequential(module, check_choice("output", output, OUTPUTS))
        sizes = [W[0].shape[1], *(len(bias) for bias in b)]
        model = cls(sizes, g[:-1], output, dtype=W[0].dtype.name, device=device, seed=seed)
        model.weights, model.biases = W, b
        return model
