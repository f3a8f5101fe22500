"""What the host knows about the CUDA sources; no GPU is needed for that."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mlp_xp.devices import CupyDevice, Device, NumpyDevice
from mlp_xp.kernels import ACTIVATIONS, LOSSES
from mlp_xp.kernels.cuda.sources import FusedHead, activations, fused_head, grid_for, kernels_of
from mlp_xp.rows.batches import shards_as_stored
from mlp_xp.rows.source import InMemory


def test_importing_needs_no_cuda() -> None:
    code = (
        "import sys, mlp_xp.kernels.cuda.operations, mlp_xp.kernels.cuda.capturable\n"
        "print([m for m in ('cupy', 'nvmath', 'cuda') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


def test_the_first_activations_and_losses_have_kernels() -> None:
    assert {"sigmoid", "tanh", "relu", "leaky_relu", "identity"} <= activations() <= set(ACTIVATIONS)
    assert (
        {"sigmoid_cross_entropy", "half_squared_error", "perceptron_criterion"} <= kernels_of("losses") <= set(LOSSES)
    )


def test_fused_head_is_for_widths_that_it_takes() -> None:
    assert fused_head(196, 10, 227 * 1024) == FusedHead(196, 10, 64)
    assert fused_head(196, 10, 64 * 1024) == FusedHead(196, 10, 32)
    assert fused_head(196, 10, 227 * 1024, few_rows=True) == FusedHead(196, 10, 32)
    assert fused_head(196, 10, 64 * 1024, halves=True) == FusedHead(196, 10, 32, halves=True)
    assert fused_head(196, 10, 32 * 1024) is None
    assert fused_head(198, 10, 227 * 1024) is None
    assert fused_head(260, 10, 227 * 1024) is None
    assert fused_head(196, 17, 227 * 1024) is None
    assert fused_head(196, 1, 227 * 1024) is None


def test_fused_head_takes_all_the_shared_memory_there_is_and_no_more() -> None:
    needed = FusedHead(196, 10, 64).shared_bytes
    assert fused_head(196, 10, needed) == FusedHead(196, 10, 64)
    assert fused_head(196, 10, needed - 1) == FusedHead(196, 10, 32)


def test_every_row_has_a_block() -> None:
    assert [grid_for(rows, 8, 3) for rows in (0, 1, 8, 9, 24, 25, 1000)] == [1, 1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(("device", "shards"), [(NumpyDevice("cpu", np), 59), (CupyDevice("cuda", np), 1)])
def test_full_batch_of_mnist_is_one_shard_on_a_gpu(device: Device, shards: int) -> None:
    X, y = np.zeros((60_000, 1)), np.zeros(60_000)
    cut = shards_as_stored(InMemory(X), y, device.shard_rows, device)
    assert len(cut) == shards
    assert sum(len(shard.X) for shard in cut) == 60_000
