"""The operations for CUDA: products by cuBLAS, and one kernel for everything between two of them.

What is not a product is bound by memory, so each kernel reads and writes its matrices once; beside each kernel, its
source says what it is bound by.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from ...devices import Array
from ..staircase import Blocks
from .products import CudaProducts
from .sources import SWEEP, THREADS, FusedHead, Kernel, activations, chip, fused_head, grid_for, kernels_of

__all__ = ["CudaKernels", "Pending"]

_ALIGNMENT = 16  # bytes of the widest load
_SUM = 32, 2 * 132  # like SWEEP, if a single block adds up what the others leave behind: then fewer are faster
_ADD = 32, 8  # threads of a block: for parameters, and for shards that are added up for each


class Pending(NamedTuple):
    """A product (n, h) that :meth:`CudaKernels.activate` has yet to add its bias (h,) to."""

    product: Array
    bias: Array


class _Kept(threading.local):
    """What one thread keeps from call to call.

    Attributes
    ----------
    tickets : dict of array (1,)
        By device and stream, whose launches run one after another: the counter by which the blocks of
        ``activation_gradient`` find out which is last. It is 0 between launches.
    dZ, db : array (n, h) and (h,)
        The last result of :meth:`CudaKernels.activation_gradient` and its column sums.
    losses, totals : array (n,) and (blocks,)
        The last losses, and each block's sum of them.
    """

    dZ: Array = None
    db: Array = None
    losses: Array = None
    totals: Array = None

    def __init__(self) -> None:
        self.tickets: dict[tuple[int, int], Array] = {}


class CudaKernels(CudaProducts):
    """Operations on CuPy arrays by the kernels of ``*.cu``.

    A hidden layer is passed over once on the way forward, for its bias and activation, and once on the way back, for
    its slope and the sum over rows: :meth:`affine` leaves the bias to :meth:`activate`, and
    :meth:`activation_gradient` keeps the sum for the :meth:`bias_gradient` of the same array. All sums have a fixed
    order, so every run on a GPU has the same bits. New arrays cost next to nothing, because CuPy's memory pool returns
    those of the previous pass: there are no buffers here.

    The kernels of ``activation.cu`` take matrices of this dtype, in C order and on a 16-byte boundary, which is what
    the operations make. Other matrices, and activations and losses without a kernel, take the generic operation.

    Parameters
    ----------
    xp, dtype, precision
        As for :class:`CudaProducts`.
    """

    adds = True  # whether gradients are added to `into`, as the interface says, or replace what it held

    def __init__(self, xp: Any, dtype: str, precision: str | None = None) -> None:
        super().__init__(xp, dtype, precision)
        self._kept = _Kept()

    # The operations.

    def features(self, X: Array | Blocks) -> Array | Blocks:
        if isinstance(X, Blocks):
            return X
        if X.dtype != self.xp.uint8:
            return X if X.flags.c_contiguous else self.xp.ascontiguousarray(X)
        if self.precision == "fp16x2":
            return X.astype(self.xp.float16)  # whole numbers, which the product divides by 255
        return self.xp.multiply(X, 1 / 255, dtype=self.dtype)  # one pass: it converts each byte that it reads

    def affine(self, A: Array | Blocks, W: Array, b: Array) -> Pending:
        return Pending(self._times(A, W), b)

    def activate(self, name: str, Z: Array | Pending) -> Array:
        Z, b = Z if isinstance(Z, Pending) else (Z, None)
        if name not in activations() or not self._takes(Z):
            return super().activate(name, Z if b is None else Z + b)
        if b is not None:
            b = self._as(b, self.dtype)
        rows, units = Z.shape
        kernel = Kernel("activation", "bias_activation", (("ACTIVATION", name),))
        self.launch(kernel, grid_for(rows, *SWEEP), Z, b, np.int32(rows), np.int32(units))
        return Z

    def activation_gradient(self, name: str, dA: Array, A: Array) -> Array:
        if name not in activations() or not self._takes(dA, A):
            return super().activation_gradient(name, dA, A)
        kept, (rows, units) = self._kept, dA.shape
        place = self._place()
        if place not in kept.tickets:
            kept.tickets[place] = self.xp.zeros(1, dtype=self.xp.uint32)
        grid = grid_for(rows, *_SUM)
        partial = self._empty(grid, units)
        kept.dZ, kept.db = dA, self._empty(units)
        self.launch(
            Kernel("activation", "activation_gradient", (("ACTIVATION", name),)), grid,
            dA, A, partial, kept.db, kept.tickets[place], np.int32(rows), np.int32(units),
        )  # fmt: skip
        return dA

    def weight_gradient(self, dZ: Array, A: Array | Blocks, into: Array) -> Array:
        block = into.T[: A.shape[1]]  # the parameters are stored transposed: C order
        if A.dtype == self.xp.float16:
            self._join(self._transposed_products(A, self._halves(dZ)), block, self.adds)
        else:
            self._multiply_transposed(A, dZ, block, self.adds)
        return into

    def bias_gradient(self, dZ: Array, into: Array) -> Array:
        kept = self._kept
        if dZ is kept.dZ:
            self._add_shards(kept.db, into)
            kept.dZ = kept.db = None
        else:  # a product, because CuPy's sum(axis=0) leaves most of a GPU idle (cupy/cupy#5194)
            ones = self.xp.ones((1, dZ.shape[0]), dtype=self.dtype)
            self._multiply(ones, self._as(dZ, self.dtype), into[None, :], self.adds)
        return into

    def input_gradient(self, dZ: Array, W: Array) -> Array:
        dA = self._empty(dZ.shape[0], W.shape[1])
        self._multiply(dZ, W, dA)
        return dA

    def loss(self, name: str, A: Array, y: Array) -> tuple[Array, Array]:
        if name == "softmax_cross_entropy":
            return self._loss(Kernel(name, name), A, self._as(y, self.xp.int32))
        if name in kernels_of("losses"):
            return self._loss(Kernel("losses", name), A, self._as(y, self.dtype))
        return super().loss(name, A, y)

    def _loss(self, kernel: Kernel, A: Array, y: Array) -> tuple[Array, Array]:
        kept, (rows, units) = self._kept, A.shape
        dA, kept.losses = self._empty(rows, units), self._empty(rows)  # the slope of the last layer is taken from A
        grid = grid_for(rows, *SWEEP)
        kept.totals = self._totals(grid)
        A = self._as(A, self.dtype)
        self.launch(kernel, grid, A, y, dA, kept.losses, kept.totals, np.int32(rows), np.int32(units))
        return kept.losses, dA

    def sum(self, losses: Array) -> Array:
        kept = self._kept
        if losses is kept.losses:
            totals, kept.losses, kept.totals = kept.totals, None, None
        else:
            totals = self._totals(1)
            totals[0] = super().sum(losses)
        return self._sum(totals)

    # All of them at once.

    def grad_sum(self, net: Any, params: Any, X: Array | Blocks, y: Array, into: Any) -> Array | None:
        """Do as :func:`mlp_xp.model.grad_sum` does, with one kernel for everything between the two large products.

        ``fused_head.cu`` is the text, from the hidden layer's bias to its gradient, for one hidden layer and a softmax.

        Returns
        -------
        array () or None
            The sum of losses. None, and nothing done, if the network is not one of those: then the text has to do.
        """
        W, b, g = params.W, params.b, net.g
        if (
            len(W) != 3
            or net.objective.output.loss != "softmax_cross_entropy"
            or g[2] != "identity"
            or self._real != "float"
        ):
            return None
        if g[1] not in activations():
            return None
        (blocks, shared), rows = self._chip(), X.shape[0]
        head = fused_head(W[1].shape[0], W[2].shape[0], shared, self.precision == "fp16x2", rows <= 32 * blocks)
        if head is None:
            return None
        A = self.features(X)
        if head.halves:
            Z = self._products(A, self._halves(W[1][:, : A.shape[1]].T))
            dZ = self._empty(*Z.shape, dtype=self.xp.float16)
        else:
            dZ = Z = self._times(A, W[1])
        grid = grid_for(rows, head.tile, blocks)
        gradients, totals = self._empty(grid, head.gradients), self._totals(grid)
        b1, b2, W2 = (self._as(x, self.dtype) for x in (b[1], b[2], W[2].T))
        y = self._as(y, self.xp.int32)
        self.launch(head.kernel(g[1]), grid, Z, dZ, b1, b2, W2, y, gradients, totals, np.int32(rows))
        if head.halves:
            self._join(self._transposed_products(A, dZ), into.W[1].T[: A.shape[1]], self.adds)
        else:
            self.weight_gradient(dZ, A, into.W[1])
        self._add_head(gradients, head, into)
        return self._sum(totals)

    def _add_head(self, gradients: Array, head: FusedHead, into: Any) -> None:
        end = head.hidden + head.classes
        self._add_shards(gradients[:, : head.hidden], into.b[1])
        self._add_shards(gradients[:, head.hidden : end], into.b[2])
        self._add_shards(gradients[:, end:], into.W[2].T)

    # Memory, which a subclass may keep.

    def _totals(self, blocks: int) -> Array:
        """Return an array (blocks,) for sums of losses."""
        return self._empty(blocks)

    def _sum(self, totals: Array) -> Array:
        """(blocks,) -> (): the sum of losses."""
        return self.xp.sum(totals)

    # What operations are made of.

    def _add_shards(self, parts: Array, into: Array) -> None:
        """(s, ...) or (...) -> (...): the sum over s, in a fixed order, for contiguous `into` and rows of `parts`."""
        count = into.size
        shards, stride = (parts.shape[0], parts.strides[0] // parts.itemsize) if parts.size != count else (1, count)
        width, lanes = _ADD if shards > _ADD[1] else (THREADS, 1)
        self.launch(
            Kernel("optimizers", "add_shards", block=(width, lanes)), grid_for(count, width, count),
            into, parts, np.int32(stride), np.int32(shards), np.int32(count), np.int32(self.adds),
        )  # fmt: skip

    def _takes(self, *matrices: Array) -> bool:
        """Return whether the kernels of ``activation.cu`` can work on these."""
        return all(
            X.dtype == self.dtype and X.flags.c_contiguous and self._address(X) % _ALIGNMENT == 0 for X in matrices
        )

    def _address(self, X: Array) -> int:
        return int(X.data.ptr)

    def _chip(self) -> tuple[int, int]:
        """Return how many blocks of a head fill the GPU, and the bytes of shared memory that one may have."""
        return chip(self.xp, self.xp.cuda.Device().id)
