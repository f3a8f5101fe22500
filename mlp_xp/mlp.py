"""The model that people hold in their hands: parameters, gradients, predictions, files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from reprlib import repr as brief
from typing import Any, NamedTuple

import numpy as np

from .checks import check_choice, check_seed, check_sizes
from .convert.torch import Layers, make_sequential, read_sequential
from .devices import Array, Device, check_precision, get_device
from .files import tensors as tensor_file
from .kernels import GenericKernels, kernels_for
from .model import Network, check_activations, forward, grad_sum
from .objective import OUTPUTS, Objective, Targets, check_output
from .params import Layout, Parameters, check_like, initial_theta
from .rows.source import Rows, open_rows

__all__ = ["MLP", "Forward", "Gradient"]

_LEAST_ROWS = 256  # that are worth a device's time


class Forward(NamedTuple):
    """Every Z[l] and A[l] of a pass, by the lectures' indices: A[0] is the input and Z[0] is None."""

    Z: list[Array]
    A: list[Array]


class Gradient(NamedTuple):
    """Derivatives of the mean loss, layer by layer (``weights[0]`` belongs to W[1]).

    Attributes
    ----------
    weights, biases : list of array
        Shapes as in ``model.weights`` and ``model.biases``.
    deltas : list of array
        Each row's own error delta[l] = d loss_i / d Z[l], (n, n_l): ``biases[l]`` is the mean of its rows.
    """

    weights: list[Array]
    biases: list[Array]
    deltas: list[Array]


class MLP:
    """A multilayer perceptron.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, input first, such as ``[784, 196, 10]``.
    activation : str or sequence of str
        ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"leaky_relu"`` or ``"identity"``: one for all
        hidden layers, or one for each.
    output : str
        ``"softmax"`` (softmax cross-entropy on linear outputs), ``"sigmoid"`` (binary cross-entropy, any number of
        independent outputs), ``"identity"`` (half mean squared error), ``"softmax_of_sigmoid"`` (softmax cross-entropy
        on sigmoid outputs), ``"sigmoid_mse"`` (half mean squared error on sigmoid outputs) or ``"perceptron"`` (the
        perceptron criterion: how far linear outputs are on the wrong side of zero).
    init : str
        Law of the first weights, a key of :data:`mlp_xp.params.INITIALIZERS`.
    dtype : {"float32", "float64"}
        Everything is computed and stored in it.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"torch"``, ``"torch:DEVICE"``, ``"jax"`` or ``"strict"``.
    seed : int
        Of the first weights and of the order of mini-batches; the same on every backend.
    precision : str, optional
        How training and prediction multiply, a key of :data:`mlp_xp.devices.PRECISIONS`: ``"tf32"``, ``"bf16"`` and
        ``"fp16x2"`` (for uint8 pixels) are faster and there on CUDA only. None has all digits of `dtype`. Like the
        device, it is not saved with the model.

    Raises
    ------
    ValueError
        If an argument is unknown or does not fit, or the device is not to be had.

    Examples
    --------
    >>> model = MLP([2, 3, 1], activation="tanh", output="sigmoid")
    >>> [W.shape for W in model.weights]
    [(3, 2), (1, 3)]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Sequence[str] = "sigmoid",
        output: str = "softmax",
        init: str = "xavier_normal",
        dtype: str = "float32",
        device: str | Device = "cpu",
        seed: int = 0,
        precision: str | None = None,
    ) -> None:
        self.sizes = check_sizes(sizes)
        self.activation = check_activations(activation, len(self.sizes) - 2)
        last = check_output(output, self.sizes[-1])
        self.output = output
        self.init = init
        self.dtype = check_choice("dtype", getattr(dtype, "__name__", str(dtype)), ("float32", "float64"))
        self.seed = check_seed(seed)
        self.layout = Layout(self.sizes)
        theta = initial_theta(self.layout, init, self.seed, self.dtype)
        self.device = get_device(device, self.dtype)
        self.precision = check_precision(precision, self.dtype, self.device)
        self.kernels = kernels_for(self.device, self.dtype, self.precision)
        self.objective = Objective(last)
        self.network = Network(("", *self.activation, last.activation), self.objective)
        self.theta = self.device.asarray(theta)

    def __repr__(self) -> str:
        return (
            f"MLP({list(self.sizes)}, activation={self.activation}, output={self.output!r}, "
            f"dtype={self.dtype!r}, device={self.device.name!r})"
        )

    @property
    def weights(self) -> list[np.ndarray[Any, Any]]:
        """Copies of W[1] (n_1, n_0) to W[L] (n_L, n_{L-1}) on the host; assigning copies too."""
        return [W.copy() for W in self.layout.split(self.device.to_host(self.theta)).W[1:]]

    @weights.setter
    def weights(self, values: Sequence[Any]) -> None:
        self._assign(check_like("weights", values, self.weights), self.biases)

    @property
    def biases(self) -> list[np.ndarray[Any, Any]]:
        """Copies of b[1] (n_1,) to b[L] (n_L,) on the host; assigning copies too."""
        return [b.copy() for b in self.layout.split(self.device.to_host(self.theta)).b[1:]]

    @biases.setter
    def biases(self, values: Sequence[Any]) -> None:
        self._assign(self.weights, check_like("biases", values, self.biases))

    def _assign(self, W: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> None:
        self.theta = self.device.asarray(self.layout.join(Parameters([None, *W], [None, *b])))

    def check_features(self, X: Any, move: bool = True) -> Array:
        """Return `X` (n, n_0) as an array the model computes with, or raise a ValueError.

        Without `move`, what is on the host stays there, for :meth:`Device.asarray` to bring over part by part.
        """
        rows = self.open(X)
        X = rows.block(0, rows.shape[0])
        return self.device.asarray(X) if move else X

    def open(self, X: Any) -> Rows:
        """Check samples (n, n_0) once, and return them as rows; rows that were opened before are returned as they are.

        Raises
        ------
        ValueError, TypeError
            If they do not fit the model, see :func:`mlp_xp.rows.source.open_rows`.
        """
        rows = open_rows(X, self.sizes[0], self.device, self.dtype)
        if self.precision == "fp16x2" and not rows.pixels:
            raise ValueError(
                f"precision 'fp16x2' is exact for uint8 pixels only, got {rows.dtype}; "
                "pass those, or use 'tf32' or 'fp32'"
            )
        return rows

    def check_targets(self, y: Any, n: int, move: bool = True) -> Array:
        """Return the targets of n rows as an array the model computes with, or raise a ValueError.

        Without `move` they are on the host.
        """
        targets = self.targets(y, n).y
        return self.device.asarray(targets) if move else targets

    def targets(self, y: Any, n: int) -> Targets:
        """Check the targets of n rows once; what was checked before is returned as it is."""
        return self.objective.targets(y, n, self.sizes[-1], self.device, self.dtype)

    def forward(self, X: Any) -> Forward:
        """Return every Z[l] and A[l] (n, n_l) for the rows of `X` (n, n_0), as arrays of the device."""
        k = GenericKernels(self.device.xp, self.dtype)
        params = self.layout.split(self.theta, self.device.xp)
        A = forward(self.network, k, params, self.check_features(X))
        Z = [k.affine(A[l - 1], params.W[l], params.b[l]) for l in range(1, len(A))]
        return Forward([None, *Z], A)

    def loss_and_gradient(self, X: Any, y: Any) -> tuple[Array, Gradient]:
        """Return the mean loss over the rows and its gradient.

        Parameters
        ----------
        X : array (n, n_0)
            uint8 pixels, which count as X / 255, or floats, which count as they are.
        y : array
            Labels (n,) or one-hot rows (n, n_L) for the softmax outputs; targets (n, n_L), or (n,) for one unit, else.

        Returns
        -------
        loss : 0-d array of the device
        gradient : Gradient

        Raises
        ------
        ValueError
            If a shape, a label or a value does not fit.
        """
        xp = self.device.xp
        X = self.check_features(X)
        y, n = self.check_targets(y, X.shape[0]), X.shape[0]
        zero = self.layout.split(self.device.zeros((self.layout.size,), self.dtype), xp)
        params = self.layout.split(self.theta, xp)
        loss, dZ = grad_sum(self.network, GenericKernels(xp, self.dtype), params, X, y, into=zero)
        return loss / n, Gradient([dW / n for dW in zero.W[1:]], [db / n for db in zero.b[1:]], dZ[1:])

    def outputs(self, X: Any) -> np.ndarray[Any, Any]:
        """Return A[L] (n, n_L) on the host: logits, sigmoids or values, as `output` has it.

        Where the device's memory is short, it works on fewer rows at a time.
        """
        X = self.check_features(X, move=False)
        params = self.layout.split(self.theta, self.device.xp)
        result = np.empty((X.shape[0], self.sizes[-1]), dtype=self.dtype)
        done, count = 0, min(self.device.shard_rows, len(result))
        while done < len(result):
            rows = slice(done, min(done + count, len(result)))
            try:
                A = forward(self.network, self.kernels, params, self.device.asarray(X[rows, :]))
                result[rows] = self.device.to_host(A[-1])
            except MemoryError:
                if count <= _LEAST_ROWS:
                    raise
                count //= 2
            else:
                done = rows.stop
        return result

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Return probabilities (n, n_L): of the classes (rows add up to 1), or of each output being 1.

        Raises
        ------
        ValueError
            If the outputs make no probabilities.
        """
        probability = OUTPUTS[self.output].probability
        if not probability:
            raise ValueError(f"output {self.output!r} makes no probabilities; use predict")
        host = GenericKernels(np, self.dtype)
        A = self.outputs(X)
        return np.asarray(host.softmax(A) if probability == "softmax" else host.activate(probability, A))

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Return class labels (n,), 0/1 labels (n, n_L) or values (n, n_L); with one output unit, (n,)."""
        return self._read(self.outputs(X))

    def _read(self, A: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A[L] (n, n_L) -> what it predicts."""
        task = OUTPUTS[self.output].task
        if task == "classes":
            return np.asarray(A.argmax(axis=1))
        values = (A > 0).astype(np.int64) if task == "labels" else A
        return values[:, 0] if values.shape[1] == 1 else values

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy (all of a row's labels right), or for values the coefficient of determination R^2."""
        return self.evaluate(X, y)[1]

    def evaluate(self, X: Any, y: Any) -> tuple[float, float]:
        """Return the mean loss and the score on the rows of `X` (n, n_0) with targets `y`."""
        A = self.outputs(X)
        target = self.check_targets(y, len(A), move=False)
        losses, _ = self.objective.losses(GenericKernels(np, self.dtype), A, target)
        predicted = self._read(A)
        target = target.reshape(predicted.shape)
        if OUTPUTS[self.output].task != "values":
            right = predicted == target
            score = np.mean(right if right.ndim == 1 else right.all(axis=1))
        else:
            residual = np.sum(np.square(target - predicted), dtype=np.float64)
            total = np.sum(np.square(target - target.mean(axis=0)), dtype=np.float64)
            score = 1 - residual / total if total else np.float64(residual == 0)
        return float(np.mean(losses, dtype=np.float64)), float(score)

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make this model again, as plain data."""
        return {
            "sizes": list(self.sizes),
            "activation": list(self.activation),
            "output": self.output,
            "init": self.init,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the weights and the configuration to one safetensors file: all of it, or nothing.

        Tensors are named ``layers.0.weight``, ``layers.0.bias`` and so on, with the shapes of ``torch.nn.Linear``:
        PyTorch reads them with ``model.to_torch().load_state_dict(safetensors.torch.load_file(path))``.
        """
        tensors = {}
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = W, b
        tensor_file.save(path, tensors, {"kind": "model", "model": self.config})

    @classmethod
    def load(cls, path: str | PathLike[str], device: str | Device = "cpu") -> MLP:
        """Read a model that :meth:`save` wrote, onto any device.

        Raises
        ------
        ValueError
            If the file is damaged, is not a model, or disagrees with itself.
        """
        tensors, metadata = tensor_file.load(path)
        config = metadata.get("model")
        if not isinstance(config, dict):
            raise tensor_file.CheckpointError(f"{path} holds no model configuration; it was not written by MLP.save")
        device = get_device(device, config.get("dtype", ""))
        try:
            layers = range(len(config["sizes"]) - 1)
            W, b = ([tensors[f"layers.{i}.{kind}"] for i in layers] for kind in ("weight", "bias"))
            shapes, dtypes = [array.shape for array in W], {array.dtype.name for array in (*W, *b)}
            # before anything is made as large as the configuration says
            if shapes != [(n, m) for m, n in pairwise(config["sizes"])] or dtypes != {config["dtype"]}:
                said = f"sizes {brief(config['sizes'])} and dtype {brief(config['dtype'])}"
                raise ValueError(f"{said}, but weights {brief(shapes)} of {' and '.join(sorted(dtypes))}")
            model = cls(**config, device=device)
            model.weights, model.biases = W, b
        except (TypeError, KeyError, ValueError) as error:
            raise tensor_file.CheckpointError(f"{path} does not describe a model: {error}") from None
        return model

    def to_torch(self) -> Any:
        """Return a ``torch.nn.Sequential`` with copies of the parameters, on the CPU, that computes :meth:`outputs`.

        It takes floats: uint8 pixels divided by 255. Its last layer is followed by a Sigmoid where the outputs are
        sigmoids, and by nothing else: that is what ``CrossEntropyLoss`` and ``BCEWithLogitsLoss`` take.
        """
        return make_sequential(Layers(self.weights, self.biases, list(self.network.g[1:])))

    @classmethod
    def from_torch(cls, module: Any, output: str = "softmax", device: str | Device = "cpu", seed: int = 0) -> MLP:
        """Return an MLP with copies of the parameters of a ``torch.nn.Sequential``, such as :meth:`to_torch` makes.

        Raises
        ------
        ValueError
            If it is made of anything but Linear modules and the activations known here, or ends in another activation
            than the output does.
        """
        W, b, g = read_sequential(module, check_choice("output", output, OUTPUTS))
        sizes = [W[0].shape[1], *(len(bias) for bias in b)]
        model = cls(sizes, g[:-1], output, dtype=W[0].dtype.name, device=device, seed=seed)
        model.weights, model.biases = W, b
        return model
