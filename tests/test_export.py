"""ONNX files: accepted by onnx's checker, and computing what the model computes, in two other programs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
import mlp_xp.convert.onnx
from mlp_xp.__main__ import main as mlp_xp_main
from mlp_xp.export import main, save_onnx, to_onnx

from .libraries import Later

pytestmark = pytest.mark.needs("onnx", "onnxruntime")
onnx, reference, ort = Later("onnx"), Later("onnx.reference"), Later("onnxruntime")

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
RUNTIMES = {
    "onnxruntime": lambda proto: ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]),
    "reference": lambda proto: reference.ReferenceEvaluator(proto),
}


def some_model(rng, sizes, activation, output, dtype):
    model = mx.MLP(sizes, activation, output, dtype=dtype, seed=5)
    model.biases = [rng.standard_normal(b.shape) for b in model.biases]
    return model


def assert_same(model, proto, X):
    """Both runtimes give what predict and predict_proba give, in the same dtypes and shapes."""
    wanted = {"variable": model.predict(X)}
    if mx.OUTPUTS[model.output].task != "values":
        wanted = {"label": model.predict(X)}
        if mx.OUTPUTS[model.output].probability:
            wanted["probabilities"] = model.predict_proba(X)
    assert [output.name for output in proto.graph.output] == list(wanted)
    for runtime in RUNTIMES.values():
        for got, value in zip(runtime(proto).run(None, {"X": X}), wanted.values(), strict=True):
            assert (got.dtype, got.shape) == (value.dtype, value.shape)
            assert_allclose(got, value, rtol=TOLERANCE[model.dtype], atol=TOLERANCE[model.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("activation", mx.ACTIVATIONS)
def test_both_runtimes_agree(activation, output, dtype, rng):
    for sizes in ([6, 3], [6, 5, 3], [6, 5, 4, 7, 3]):
        model = some_model(rng, sizes, activation, output, dtype)
        assert_same(model, to_onnx(model), rng.standard_normal((9, 6)).astype(dtype))


@pytest.mark.parametrize("output", ["sigmoid", "identity", "sigmoid_mse"])
def test_one_unit_gives_one_number_a_row(output, rng):
    model = some_model(rng, [6, 5, 1], "tanh", output, "float64")
    assert model.predict(np.zeros((9, 6))).shape == (9,)
    assert_same(model, to_onnx(model), rng.standard_normal((9, 6)))


@pytest.mark.parametrize("device", ["strict", "cuda"])
def test_mixed_activations_and_other_devices(device, rng):
    model = some_model(rng, [6, 5, 4, 3], ["relu", "leaky_relu"], "softmax", "float64")
    there = mx.MLP(**model.config, device=device)
    there.weights, there.biases = model.weights, model.biases
    assert to_onnx(there) == to_onnx(model)
    assert_same(model, to_onnx(model), rng.standard_normal((9, 6)))


@pytest.mark.parametrize("output", mx.OUTPUTS)
def test_stable_for_huge_outputs(output):
    model = mx.MLP([2, 2], output=output, dtype="float64")
    model.weights = [np.eye(2)]
    with np.errstate(over="ignore", invalid="ignore"):  # in values that onnx.reference leaves unused
        assert_same(model, to_onnx(model), np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0, 0]]))


@pytest.fixture(scope="module")
def trained(mnist):
    """Models of both precisions after an epoch on 2,000 digits."""
    models = {}
    for dtype in TOLERANCE:
        models[dtype] = mx.MLP([784, 32, 10], "leaky_relu", dtype=dtype)
        mx.fit(models[dtype], mnist[0].X[:2000], mnist[0].y[:2000], epochs=1, batch_size=50, optimizer=mx.Adam(lr=0.01))
        assert models[dtype].score(mnist[1].X, mnist[1].y) > 0.8
    return models


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_real_digits(dtype, runtime, trained, mnist):
    """500 test images, as bytes and as floats: the same labels, the same probabilities."""
    model, X = trained[dtype], mnist[1].X[:500]
    numbers = X.astype(dtype) / np.dtype(dtype).type(255)
    for given, pixels in ((X, True), (numbers, False)):
        label, probabilities = RUNTIMES[runtime](to_onnx(model, pixels=pixels)).run(None, {"X": given})
        assert_array_equal(label, model.predict(X))
        assert_allclose(probabilities, model.predict_proba(X), rtol=0, atol=TOLERANCE[dtype])


def test_shapes_types_and_metadata():
    proto = to_onnx(mx.MLP([784, 16, 10], "relu", "softmax"), pixels=True)
    (X,), (label, probabilities) = proto.graph.input, proto.graph.output

    def shape(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    def kind(value):
        return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)

    assert (shape(X), kind(X)) == (["n", 784], "UINT8")
    assert (shape(label), kind(label)) == (["n"], "INT64")
    assert (shape(probabilities), kind(probabilities)) == (["n", 10], "FLOAT")
    assert (proto.producer_name, proto.producer_version) == ("mlp_xp", mx.__version__)
    properties = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert properties == {"sizes": [784, 16, 10], "activation": ["relu"], "output": "softmax"}
    assert kind(to_onnx(mx.MLP([4, 2], dtype="float64")).graph.input[0]) == "DOUBLE"


@pytest.fixture
def run_folder(tmp_path):
    mx.MLP([4, 3, 2], seed=3).save(tmp_path / "model.safetensors")
    return tmp_path


def test_command(run_folder, capsys, rng):
    """A run folder or a model file; beside the model or elsewhere; a second time in the place of the first."""
    model, X = mx.MLP.load(run_folder / "model.safetensors"), rng.standard_normal((5, 4)).astype(np.float32)
    for source, out in ((run_folder, None), (run_folder / "model.safetensors", None), (run_folder, "other.onnx")):
        path = run_folder / (out or "model.onnx")
        assert main([str(source), "--onnx", *(["--out", str(path)] if out else [])]) == 0
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == (
            f"{path}: (float[n, 4] X) => (int64[n] label, float[n, 2] probabilities)\n",
            "",
        )
        assert_same(model, onnx.load(path), X)
    assert mlp_xp_main(["export", str(run_folder), "--onnx", "--pixels"]) == 0
    assert "(uint8[n, 4] X)" in capsys.readouterr().out
    pixels = rng.integers(0, 256, (5, 4), dtype=np.uint8)
    assert_same(model, onnx.load(run_folder / "model.onnx"), pixels)
    assert sorted(path.name for path in run_folder.iterdir()) == ["model.onnx", "model.safetensors", "other.onnx"]


def test_as_a_process(run_folder):
    command = [sys.executable, "-W", "error", "-m", "mlp_xp.export"]
    done = subprocess.run([*command, run_folder, "--onnx"], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    done = subprocess.run([*command, run_folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_wrong_arguments(run_folder, tmp_path, fails):
    fails("the following arguments are required: --onnx; --help", run_folder)
    fails("nowhere: No such file or directory", "nowhere", "--onnx")
    fails("was not loaded", __file__, "--onnx")
    fails("gone/a.onnx: ", run_folder, "--onnx", "--out", tmp_path / "gone" / "a.onnx")
    (tmp_path / "folder").mkdir()
    fails("something here that is not a file", run_folder, "--onnx", "--out", tmp_path / "folder")


def test_a_run_that_is_not_finished(tmp_path, fails):
    mx.fit(mx.MLP([2, 2]), *mx.datasets.xor(), epochs=1, checkpoint=mx.Checkpoint(tmp_path))
    fails(
        f"not finished, there is no model.safetensors yet; go on with: python -m mlp_xp.train --resume {tmp_path}\n",
        tmp_path,
        "--onnx",
    )
    assert not (tmp_path / "model.onnx").exists()
    mx.MLP([2, 2]).save(tmp_path / "model.safetensors")
    assert main([str(tmp_path), "--onnx"]) == 0


def test_the_model_is_never_overwritten(run_folder, fails):
    content = (run_folder / "model.safetensors").read_bytes()
    (run_folder / "link.onnx").symlink_to("model.safetensors")
    for out in ("model.safetensors", "link.onnx"):
        fails("is the model itself; choose another --out", run_folder, "--onnx", "--out", run_folder / out)
    odd = run_folder / "model.onnx"
    odd.write_bytes(content)
    fails("is the model itself", odd, "--onnx")
    assert odd.read_bytes() == (run_folder / "model.safetensors").read_bytes() == content


def test_a_file_is_whole_or_as_it_was(run_folder, monkeypatch):
    path = run_folder / "model.onnx"
    path.write_bytes(b"old")
    write = mlp_xp.convert.onnx.replace_file

    def damage(path, chunks, verify):
        write(path, [chunks[0][:-1]], verify)

    monkeypatch.setattr(mlp_xp.convert.onnx, "replace_file", damage)
    with pytest.raises(OSError, match="does not read back"):
        save_onnx(mx.MLP([4, 2]), path)
    assert path.read_bytes() == b"old"
    assert sorted(file.name for file in run_folder.iterdir()) == ["model.onnx", "model.safetensors"]


def test_too_large_for_the_format(monkeypatch):
    monkeypatch.setattr(mlp_xp.convert.onnx, "MAX_BYTES", 39)
    with pytest.raises(ValueError, match="take 40 bytes, and ONNX files hold 39; export a smaller model"):
        to_onnx(mx.MLP([4, 2]))


def test_onnx_is_asked_for(monkeypatch, run_folder, fails):
    monkeypatch.setitem(sys.modules, "onnx", None)
    fails("ONNX files need onnx; install it with: pip install 'mlp_xp[onnx]'", run_folder, "--onnx")
    assert not (run_folder / "model.onnx").exists()
