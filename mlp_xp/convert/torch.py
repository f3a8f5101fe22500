"""To ``torch.nn.Sequential`` and back. PyTorch is imported when it is needed, not before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..kernels.generic import LEAK
from ..objective import OUTPUTS

__all__ = ["Layers", "make_sequential", "read_sequential"]

MODULES = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU", "leaky_relu": "LeakyReLU", "identity": "Identity"}


class Layers(NamedTuple):
    """W[1] to W[L] (n_l, n_{l-1}), b[1] to b[L] (n_l,), and the names of the activations g[1] to g[L]."""

    W: list[np.ndarray[Any, Any]]
    b: list[np.ndarray[Any, Any]]
    g: list[str]


def make_sequential(layers: Layers) -> Any:
    """Return a ``torch.nn.Sequential`` whose state dict has the names that :meth:`mlp_xp.MLP.save` gives.

    Raises
    ------
    ModuleNotFoundError
        If PyTorch is not installed.
    """
    torch = _import_torch()
    modules: OrderedDict[str, Any] = OrderedDict()
    for i, (W, b, g) in enumerate(zip(*layers, strict=True)):
        linear = torch.nn.Linear(W.shape[1], W.shape[0], device="meta")  # "meta" draws no random numbers
        linear.weight, linear.bias = torch.nn.Parameter(torch.tensor(W)), torch.nn.Parameter(torch.tensor(b))
        modules[f"{i}"] = linear
        if g != "identity":
            modules[f"{i}_{g}"] = getattr(torch.nn, MODULES[g])(*([LEAK] if g == "leaky_relu" else []))
    return torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(modules)))


def read_sequential(module: Any, output: str) -> Layers:
    """Return the layers of a ``torch.nn.Sequential``, which may hold further ones, or of a single Linear module.

    Raises
    ------
    ValueError
        If there is anything but Linear modules with a bias, each with at most one activation after it, the last
        activation is not that of the output, or the parameters are not all float32 or all float64.
    ModuleNotFoundError
        If PyTorch is not installed.
    """
    torch = _import_torch()
    names = {getattr(torch.nn, kind): name for name, kind in MODULES.items()}
    linears: list[Any] = []
    g: list[str] = []
    for part in _parts(module, torch.nn.Sequential):
        if type(part) is torch.nn.Linear:
            if part.bias is None:
                raise ValueError(
                    f"{part} has no bias, and an MLP trains one in every layer; give it zeros to start with: "
                    "linear.bias = torch.nn.Parameter(torch.zeros_like(linear.weight[:, 0]))"
                )
            linears.append(part)
            g.append("identity")
        elif type(part) not in names or g[-1:] != ["identity"]:
            place = f"after {len(linears)} Linear" + (f" and a {MODULES[g[-1]]}" if g and g[-1] != "identity" else "")
            raise ValueError(
                f"the module has a {type(part).__name__} {place}; allowed are Linear modules, each with at most one of "
                f"{', '.join(MODULES.values())} after it: leave the others out"
            )
        elif type(part) is torch.nn.LeakyReLU and part.negative_slope != LEAK:
            raise ValueError(f"{part} has another slope than leaky_relu here; train with LeakyReLU({LEAK})")
        else:
            g[-1] = names[type(part)]
    dtypes = {parameter.dtype for linear in linears for parameter in linear.parameters()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        found = " and ".join(sorted(map(str, dtypes))) if dtypes else "missing: there is no Linear"
        raise ValueError(f"the parameters are {found}; give Linear modules, all after .float() or all after .double()")
    last = OUTPUTS[output].activation
    if g[-1] != last:
        fitting = " or ".join(repr(name) for name, known in OUTPUTS.items() if known.activation == g[-1])
        raise ValueError(
            f"the module ends in {g[-1]!r}, and output {output!r} in {last!r} (its loss does the rest); "
            + (f"choose output {fitting}, or " if fitting else "")
            + "change the module's end"
        )
    W, b = ([getattr(linear, name).detach().cpu().numpy() for linear in linears] for name in ("weight", "bias"))
    return Layers(W, b, g)


def _parts(module: Any, sequential: Any) -> Iterator[Any]:
    """Yield the modules in the order in which they are called."""
    if type(module) is not sequential:
        yield module
        return
    for part in module:
        yield from _parts(part, sequential)


def _import_torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs PyTorch; install it with: pip install 'mlp_xp[torch]'") from error
    return torch
