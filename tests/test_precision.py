"""Precision: which there are on a device, and what becomes of them in files and on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.cli.config import parse
from mlp_xp.devices import PRECISIONS, CupyDevice, check_precision
from mlp_xp.kernels.cuda import operations as cuda
from mlp_xp.kernels.cuda import products as cuda_products
from mlp_xp.train import main

GPU = CupyDevice("cuda", np)


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "fp32"), ("float64", "fp64")])
def test_all_digits_if_not_told_otherwise(dtype: str, precision: str) -> None:
    assert mx.MLP([2, 2], dtype=dtype).precision == precision
    assert mx.MLP([2, 2], dtype=dtype, precision=precision).precision == precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_has_them_all(precision: str) -> None:
    assert check_precision(precision, PRECISIONS[precision], GPU) == precision


@pytest.mark.parametrize(
    ("precision", "dtype", "device", "message"),
    [
        ("tf32", "float32", "cpu", "device 'cpu' has the precisions 'fp32' and 'fp64', got 'tf32'"),
        ("fp16x2", "float32", "strict", "device 'strict' has the precisions"),
        ("fp64", "float32", "cpu", "precision 'fp64' goes with dtype 'float64', got dtype 'float32'"),
        ("tf32", "float64", "cpu", "goes with dtype 'float32'"),
        ("fp8", "float32", "cpu", "unknown precision 'fp8'; choose from 'fp32', 'fp64', 'tf32', 'bf16', 'fp16x2'"),
    ],
)
def test_what_a_device_does_not_have_is_refused(precision: str, dtype: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mx.MLP([2, 2], dtype=dtype, device=device, precision=precision)


def test_halves_are_for_bytes() -> None:
    model = mx.MLP([2, 2])
    model.precision = "fp16x2"
    assert model.open(np.full((3, 2), 9, np.uint8)).dtype == np.uint8
    with pytest.raises(ValueError, match="exact for uint8 pixels only, got float32; pass those, or use 'tf32'"):
        model.open(np.ones((3, 2)))


def test_fewer_digits_need_nvmath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_products, "load_cublas", lambda: None)
    assert cuda.CudaKernels(np, "float32").precision == "fp32"
    with pytest.raises(ValueError, match="precision 'tf32' needs nvmath-python and its cuBLAS"):
        cuda.CudaKernels(np, "float32", "tf32")


def test_a_model_is_saved_without_it(tmp_path) -> None:
    model = mx.MLP([2, 2])
    model.precision = "tf32"
    model.save(tmp_path / "model.safetensors")
    assert mx.MLP.load(tmp_path / "model.safetensors").precision == "fp32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_command_takes_it(precision: str) -> None:
    assert parse(["--precision", precision]).precision == precision


def test_the_command_writes_it_down_or_refuses(tmp_path, capsys) -> None:
    arguments = ["--preset", "xor", "--epochs", "1", "--out"]
    assert main([*arguments, str(tmp_path / "run"), "--precision", "fp64"]) == 0
    assert "GFLOP/s in fp64" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "env.json").read_text())["precision"] == "fp64"
    assert main([*arguments, str(tmp_path / "other"), "--precision", "bf16"]) != 0
    assert "device 'cpu' has the precisions" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
