"""The operations for PyTorch, as fast as eager PyTorch gets: fused and in place where it can, without autograd."""

from __future__ import annotations

import torch

from ..devices import Array
from .generic import GenericKernels

__all__ = ["TorchKernels"]

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # what autograd calls
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class TorchKernels(GenericKernels):
    """Operations on tensors that write into `into`, `Z` and `dA`.

    Operations of few rows take PyTorch longer to start than to do, so each is a single call if there is one that does
    it all. Masks are avoided: PyTorch takes ten times as long for numbers chosen by a mask as for arithmetic.

    Parameters
    ----------
    xp : module
        ``array_api_compat.torch``.
    dtype : str
        ``"float32"`` or ``"float64"``.
    """

    def features(self, X: Array) -> Array:
        return X.to(self.dtype).mul_(1 / 255) if X.dtype == torch.uint8 else X

    def affine(self, A: Array, W: Array, b: Array) -> Array:
        return torch.addmm(b, A, W.T)

    def activate(self, name: str, Z: Array) -> Array:
        match name:
            case "sigmoid":
                return Z.sigmoid_()
            case "tanh":
                return Z.tanh_()
            case "relu":
                # of -0.0 the sum makes 0.0, which is on the other side of the kink than the -0.0 for Z < 0
                return Z.add_(0.0).clamp_min_(-0.0)
            case _:
                return super().activate(name, Z)

    def activation_gradient(self, name: str, dA: Array, A: Array) -> Array:
        match name:
            case "sigmoid":
                return _sigmoid_backward(dA, A, grad_input=dA)
            case "tanh":
                return _tanh_backward(dA, A, grad_input=dA)
            case "relu":
                return _threshold_backward(dA, A.reciprocal(), -1, grad_input=dA)  # 0 where A is -0.0: 1 / A is -inf
            case _:
                return super().activation_gradient(name, dA, A)

    def weight_gradient(self, dZ: Array, A: Array, into: Array) -> Array:
        into.T.addmm_(A.T, dZ)
        return into

    def bias_gradient(self, dZ: Array, into: Array) -> Array:
        return into.add_(dZ.sum(0))

    def input_gradient(self, dZ: Array, W: Array) -> Array:
        return torch.mm(dZ, W)

    def loss(self, name: str, A: Array, y: Array) -> tuple[Array, Array]:
        if name != "softmax_cross_entropy":
            return super().loss(name, A, y)
        logarithms, right = torch.log_softmax(A, 1), y.long()[:, None]
        losses = logarithms.gather(1, right)[:, 0].neg_()
        dA = logarithms.exp_()
        return losses, dA.scatter_add_(1, right, dA.new_full((), -1).expand(right.shape))

    def sum(self, losses: Array) -> Array:
        return losses.sum()
