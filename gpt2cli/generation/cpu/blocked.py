"""Owns the products for several rows at a time, with weights in the blocks that oneDNN's kernels read.

With 2 to some 100 rows a product is too much arithmetic for the kernels of products.py and too little
for `F.linear`, which brings the weights into such blocks again at every call.
"""

import torch
from torch import Tensor, nn

from gpt2cli.generation.cpu.linear import Packed
from gpt2cli.generation.cpu.quantizing import LARGEST, quantize_rows

ROWS_HINT = 8  # that the blocks are chosen for; between 1 and 512 rows it made no difference
MIDDLE = 128  # the unsigned number that stands for 0: the processor multiplies unsigned by signed


def can_block(precision: str) -> bool:
    """Whether oneDNN is there, with kernels for this precision on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if precision == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return precision == "fp32" or bool(torch.cpu._is_vnni_supported())


class BlockedLinear(Packed):
    """x W^T + b in fp32; what comes out is always fp32."""

    dtype = torch.float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().to(self.dtype).contiguous()  # (N, K)
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        self.bias = None if linear.bias is None else linear.bias.detach().to(self.dtype)  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "none", [], "")
        return y.float()


class BlockedBf16Linear(BlockedLinear):
    """The same with x and W rounded to bf16, and sums in fp32."""

    dtype = torch.bfloat16


class BlockedInt8Linear(Packed):
    """x W^T + b with W and each row of x as whole numbers and a scale a row, and whole sums.

    A row of x has a scale of its own (Dettmers et al. 2022, LLM.int8(), section 2.1), so that no row
    depends on the others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        whole, self.scale = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight)).float()
        quantize_rows(weight, whole, self.scale)
        self.blocks = torch.ops.onednn.qlinear_prepack(whole.contiguous(), None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)  # (N,), what stands for 0 in W
        self.bias = None if linear.bias is None else linear.bias.detach().float()  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        largest = rows.abs().amax(dim=1, keepdim=True)  # (n, 1); torch's norm takes ten times as long
        scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        # The cast cuts off what follows the point; half a step more makes that rounding.
        whole = (rows / scale).add_(MIDDLE + 0.5).to(torch.uint8)  # (n, K)
        y = torch.ops.onednn.qlinear_pointwise(
            *(whole, 1.0, MIDDLE),
            *(self.blocks, self.scale, self.zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)
        return y.view(*x.shape[:-1], -1)
