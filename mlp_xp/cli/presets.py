"""The lectures' cases, as options of ``python -m mlp_xp.train``."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

_LECTURES: dict[str, Any] = {"activation": ("sigmoid",), "schedule": "constant"}

PRESETS: dict[str, dict[str, Any]] = {
    "mnist-10": {**_LECTURES, "lr": 0.003, "epochs": 12},
    "mnist-5v8": {
        **_LECTURES, "data": "mnist:5,8", "output": "sigmoid", "init": "lecun_normal",
        "optimizer": "sgd", "lr": 0.1, "batch_size": 0, "epochs": 500, "report_every": 100,
    },
    "softmax-of-sigmoid": {
        **_LECTURES, "output": "softmax_of_sigmoid", "optimizer": "sgd", "lr": 2.0, "batch_size": 0, "epochs": 100,
    },
    "regression": {
        **_LECTURES, "data": "mnist:5,8", "output": "sigmoid_mse", "init": "lecun_normal",
        "optimizer": "sgd", "lr": 1.0, "batch_size": 0, "epochs": 500, "report_every": 100,
    },
    "xor": {
        **_LECTURES, "data": "xor", "hidden": (4,), "activation": ("tanh",), "output": "sigmoid",
        "lr": 0.1, "batch_size": 0, "epochs": 200, "seed": 1,
    },
}  # fmt: skip
"""S7's data and network with softmax, S4, S7, S6 and S15."""
