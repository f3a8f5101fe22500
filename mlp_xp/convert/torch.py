"""Convert to ``torch.nn.Sequential`` and back. PyTorch is imported only when it is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..kernels import ACTIVATIONS
from ..kernels.functions import Activation
from ..objective import OUTPUTS

__all__ = ["Layers", "make_sequential", "read_sequential"]


class Layers(NamedTuple):
    """W[1] to W[L] (n_l, n_{l-1}), b[1] to b[L] (n_l,), and the names of the activations g[1] to g[L]."""

    W: list[np.ndarray[Any, Any]]
    b: list[np.ndarray[Any, Any]]
    g: list[str]


def make_sequential(layers: Layers) -> Any:
    """Return a ``torch.nn.Sequential`` whose state dict has the names that :meth:`mlp_xp.MLP.save` gives.

    Raises
    ------
    ValueError
        If PyTorch has no module for an activation.
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
            modules[f"{i}_{g}"] = _module(torch, ACTIVATIONS[g])
    return torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(modules)))


def read_sequential(module: Any, output: str) -> Layers:
    """Return the layers of a ``torch.nn.Sequential``, which may be nested, or of a single Linear module.

    Raises
    ------
    ValueError
        If there is anything but Linear modules with a bias, each with at most one activation after it, the last
        activation is not that of the output, the parameters are not all float32 or all float64, two layers share a
        parameter, or a module has forward hooks.
    ModuleNotFoundError
        If PyTorch is not installed.
    """
    torch = _import_torch()
    known = {getattr(torch.nn, g.torch): g for g in ACTIVATIONS.values() if g.torch}
    linears: list[Any] = []
    g: list[str] = []
    for part in _parts(module, torch.nn.Sequential):
        if type(part) is torch.nn.Linear:
            linears.append(part)
            g.append("identity")
        elif type(part) not in known or g[-1:] != ["identity"]:
            after = f" and a {ACTIVATIONS[g[-1]].torch}" if g and g[-1] != "identity" else ""
            raise ValueError(
                f"the module has a {type(part).__name__} after {len(linears)} Linear{after}; allowed are Linear "
                "modules, each with at most one of "
                f"{', '.join(kind.__name__ for kind in known)} after it: leave the others out"
            )
        else:
            g[-1] = _name(part, known[type(part)])
    _check_linears(linears, torch)
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


def _module(torch: Any, g: Activation) -> Any:
    """Return the module of ``torch.nn`` that computes an activation."""
    if not g.torch:
        known = ", ".join(repr(other.name) for other in ACTIVATIONS.values() if other.torch)
        raise ValueError(f"activation {g.name!r} has no module in torch.nn; those that have one are {known}")
    return getattr(torch.nn, g.torch)(**g.torch_options)


def _name(part: Any, g: Activation) -> str:
    """Return the name of an activation that `part` has the module of, if its options are the same here."""
    if any(getattr(part, option) != value for option, value in g.torch_options.items()):
        options = ", ".join(f"{option}={value}" for option, value in g.torch_options.items())
        raise ValueError(f"{part} is not what {g.name!r} computes here; train with {g.torch}({options})")
    return g.name


def _check_linears(linears: list[Any], torch: Any) -> None:
    """Raise a ValueError unless each Linear has weights and biases of its own, all of one dtype that MLPs have."""
    for linear in linears:
        if linear.bias is None:
            raise ValueError(
                f"{linear} has no bias, and an MLP trains one in every layer; give it zeros to start with: "
                "linear.bias = torch.nn.Parameter(torch.zeros_like(linear.weight[:, 0]))"
            )
    parameters = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ValueError(
            "two layers of the module share a parameter, and the layers of an MLP would train apart; "
            "give each layer its own: copy.deepcopy(linear)"
        )
    dtypes = {parameter.dtype for parameter in parameters}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        found = " and ".join(sorted(map(str, dtypes))) if dtypes else "missing: there is no Linear"
        raise ValueError(f"the parameters are {found}; give Linear modules, all after .float() or all after .double()")


def _parts(module: Any, sequential: Any) -> Iterator[Any]:
    """Yield the modules in the order in which they are called, if nothing else is called with them."""
    if any(getattr(module, hooks, None) for hooks in ("_forward_pre_hooks", "_forward_hooks")):
        raise ValueError(
            f"the module's {type(module).__name__} has forward hooks, which an MLP would not call; "
            "remove them: handle.remove(), or torch.nn.utils.remove_weight_norm and the like"
        )
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
