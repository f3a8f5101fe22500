"""Forward and backward of the multilayer perceptron, once, for every array library.

Samples are rows. Layers are numbered as in the lectures: layer 0 is the input, layers 1 to L have weights W[l] of shape
(n_l, n_{l-1}) and biases b[l] of shape (n_l,). n is the number of rows; g[l] is the activation function of layer l.

    forward      A[0] = X,  Z[l] = H[l-1] W[l]ᵀ + b[l],  A[l] = g[l](Z[l]),  H[l] = A[l] ∘ D[l]
    backward     dZ[l] = dA[l] ∘ g[l]'(Z[l]),  dH[l-1] = dZ[l] W[l],  dA[l-1] = dH[l-1] ∘ D[l-1],
                 dW[l] = dZ[l]ᵀ H[l-1],  db[l] = dZ[l]ᵀ 1

D[l] (n, n_l) is 0 where dropout takes a unit out of a row's network, and 1 / (1 - rate) elsewhere. Where nothing is
dropped, as in all predictions, D[l] is None, and H[l] is A[l] itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from .checks import check_choice
from .devices import Array
from .kernels import ACTIVATIONS, Kernels
from .params import Parameters

__all__ = ["Factors", "Loss", "Network", "backward", "check_activations", "forward", "grad_sum"]


Factors: TypeAlias = Sequence[Array | None]
"""D[0] to D[L]: what dropout multiplies each layer by; D[0] and D[L] are None."""


class Loss(Protocol):
    """What :class:`mlp_xp.objective.Objective` is to this text: losses of rows, and their slopes."""

    def losses(self, k: Kernels, A: Array, y: Array) -> tuple[Array, Array]: ...


class Network(NamedTuple):
    """The functions of a network: activations g[1] to g[L] (g[0] is unused), and the objective, a loss of A[L]."""

    g: tuple[str, ...]
    objective: Loss


# fmt: off
def forward(
    net: Network, k: Kernels, params: Parameters, X: Array, D: Factors | None = None
) -> tuple[list[Array], list[Array]]:
    """(n, n_0) -> activations A[0] (n, n_0) to A[L] (n, n_L), and H[0] to H[L], what dropout leaves of them."""
    W, b, g = params.W, params.b, net.g
    D = D or [None] * len(W)
    A = [k.features(X)]                                              # A[0] = X                    (n, n_0)
    H = [k.dropout(A[0], D[0])]                                      # H[0] = A[0] ∘ D[0]          (n, n_0)
    for l in range(1, len(W)):
        Z = k.affine(H[l - 1], W[l], b[l])                           # Z[l] = H[l-1] W[l]ᵀ + b[l]  (n, n_l)
        A.append(k.activate(g[l], Z))                                # A[l] = g(Z[l])              (n, n_l)
        H.append(k.dropout(A[l], D[l]))                              # H[l] = A[l] ∘ D[l]          (n, n_l)
    return A, H


def backward(
    net: Network, k: Kernels, params: Parameters, A: list[Array], H: list[Array], dA: Array, into: Parameters,
    D: Factors | None = None,
) -> list[Array]:
    """dA[L] (n, n_L) -> dZ[0], unused, to dZ[L] (n, n_L); the rows' gradients are added to dW and db of `into`."""
    W, g = params.W, net.g
    D = D or [None] * len(W)
    dW, db = into
    dZ = [None] * len(W)
    for l in range(len(W) - 1, 0, -1):
        dZ[l] = k.activation_gradient(g[l], dA, A[l])                # dZ[l] = dA[l] ∘ g'(Z[l])    (n, n_l)
        if l > 1:
            dH = k.input_gradient(dZ[l], W[l])                       # dH[l-1] = dZ[l] W[l]        (n, n_{l-1})
            dA = k.dropout(dH, D[l - 1])                             # dA[l-1] = dH[l-1] ∘ D[l-1]  (n, n_{l-1})
        dW[l] = k.weight_gradient(dZ[l], H[l - 1], dW[l])            # dW[l] += dZ[l]ᵀ H[l-1]      (n_l, n_{l-1})
        db[l] = k.bias_gradient(dZ[l], db[l])                        # db[l] += dZ[l]ᵀ 1           (n_l,)
    return dZ


def grad_sum(
    net: Network, k: Kernels, params: Parameters, X: Array, y: Array, into: Parameters, scale: Any = None,
    D: Factors | None = None,
) -> tuple[Array, list[Array]]:
    """Return the sum of the rows' losses () and dZ; the rows' gradients, times `scale` if given, are added to `into`.

    For one hidden layer and a softmax, :meth:`mlp_xp.kernels.cuda.operations.CudaKernels.grad_sum` does the same
    with a single kernel for all but the large products. This is the text; tests hold that kernel to it.
    """
    A, H = forward(net, k, params, X, D)
    losses, dA = net.objective.losses(k, A[-1], y)                   # dA[L] = ∂loss / ∂A[L]       (n, n_L)
    if scale is not None:
        dA *= scale                                                  # smaller than the gradients  (n, n_L)
    return k.sum(losses), backward(net, k, params, A, H, dA, into, D)
# fmt: on


def check_activations(activation: Any, hidden: int) -> tuple[str, ...]:
    """Return one activation name per hidden layer."""
    if isinstance(activation, str) or not isinstance(activation, Sequence):
        return (check_choice("activation", activation, ACTIVATIONS),) * hidden
    if len(activation) != hidden:
        raise ValueError(
            f"got {len(activation)} activations for {hidden} hidden layers; give one name, or one per hidden layer"
        )
    return tuple(check_choice("activation", name, ACTIVATIONS) for name in activation)
