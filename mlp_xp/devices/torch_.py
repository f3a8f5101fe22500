"""PyTorch on any of its devices, without autograd."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import Array, Device

__all__ = ["TorchDevice"]


class TorchDevice(Device):
    """PyTorch on the CPU, or on the device after the colon."""

    spellings: ClassVar[tuple[str, ...]] = ("torch", "torch:DEVICE")
    title: ClassVar[str] = "PyTorch"
    namespace: ClassVar[str] = "array_api_compat.torch"
    remedy: ClassVar[str] = "pip install 'mlp_xp[torch]'"
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    @classmethod
    def _name_for(cls, x: Array) -> str:
        return f"torch:{x.device}"

    @classmethod
    def _place(cls, index: str, xp: Any) -> Any:
        import torch

        index = index or "cpu"
        try:
            return torch.empty(0, device=index).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device 'torch:{index}' cannot be used here ({reason}); use 'torch' for the CPU"
            ) from None

    def _plain(self, x: Array) -> Array:
        if x.layout is not self.xp.strided:
            raise TypeError(f"got a sparse tensor ({x.layout}), and all computations here are dense; pass x.to_dense()")
        return x.detach() if x.requires_grad else x  # else a graph of all updates would be kept

    def _from_host(self, host: np.ndarray[Any, Any]) -> Array:
        if not host.flags.writeable:
            host = host.copy()  # torch has no read-only tensors and warns about sharing one
        return super()._from_host(host)

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        if type(x) is np.ndarray:
            return x
        x = x.detach().resolve_neg().cpu()
        return np.asarray(x.float() if x.dtype == self.xp.bfloat16 else x)  # NumPy has no bfloat16

    @property
    def widest(self) -> str:
        return "float32" if self.where is not None and self.where.type == "mps" else "float64"

    def synchronize(self) -> None:
        if self.where is not None and self.where.type == "cuda":
            import torch

            torch.cuda.synchronize(self.where)

    def hardware(self) -> str | None:
        if self.where is None or self.where.type != "cuda":
            return None
        import torch

        return str(torch.cuda.get_device_name(self.where))
