"""A CUDA or Apple device that is not there: tensors without numbers, on which torch plays its operations.

What comes out are shapes, dtypes and the operations themselves, and where the host would have to wait for the
device. There are no gradients: autograd asks the device itself.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

READ = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal")


class Launches(TorchDispatchMode):
    """Records the operations that run on the device, by name, and those for which the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        if name.startswith("aten._local_scalar_dense"):
            self.waits.append(name)
            return 1.0
        result = function(*args, **kwargs)
        tensors = [one for one in (*args, result) if isinstance(one, torch.Tensor)]
        on_device = any(one.device.type != "cpu" for one in tensors)
        if not name.startswith("aten.") or not on_device or function.is_view:
            return result
        to_host = any(one.device.type == "cpu" and one.dim() for one in tensors)
        if name.startswith(READ) or (to_host and not kwargs.get("non_blocking")):
            self.waits.append(name)
        elif not name.startswith(("aten.empty", "aten.new_empty", "aten.detach")):
            self.launched.append(name)
        return result


@contextlib.contextmanager
def fake_device() -> Iterator[Launches]:
    """Inside, a tensor with device="cuda" or "mps" has no numbers, and whatever runs on it is recorded."""
    with FakeTensorMode(), torch.no_grad(), Launches() as launches:
        yield launches
