"""Owns the products that decoding on a CPU uses in the place of `nn.Linear`.

At batch 1 a token costs one read of every weight, and `F.linear` reads at a quarter of the
memory's speed. The modules here compute the same products with kernels that read faster; the
model around them stays the one of `model/`. benchmarks/decode.py measures what it brings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.model.gpt2 import GPT2LMHead

FEW_ROWS = 16  # up to here a product waits for the memory; beyond, F.linear is as fast
MOST_PARTS = 16


def pack_for_decoding(model: GPT2LMHead) -> GPT2LMHead:
    """Exchange the products of a model on a CPU, in place, and return it.

    Holds no second copy of the weights; afterwards the model can only decode, for its parameters
    are others. Which products are taken depends on the precision and the number of threads, never
    on a timing, so that a seed gives the same text again. On other devices nothing changes.
    """
    weight = model.lm_head.weight
    if weight.device.type != "cpu" or weight.dtype not in PRODUCTS:
        return model
    product = PRODUCTS[weight.dtype]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, product(child))
    if (
        product is SplitLinear and model.config.tie_word_embeddings
    ):  # the token embedding shares the matrix of the output layer
        model.transformer.wte = ColumnEmbedding(model.lm_head.weight)  # type: ignore[assignment]
    return model


class SplitLinear(nn.Module):
    """For fp32: x W^T + b with the channels of x split among the threads, and the parts added up.

    W is kept as (K, N), K channels in and N out, so that each part is a block of whole rows: a
    batched product gives every thread one of them to read from end to end.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t().contiguous(), requires_grad=False)  # (K, N)
        self.bias = linear.bias
        K, N = self.weight.shape
        n_parts = max(n for n in range(1, MOST_PARTS + 1) if K % n == 0 and n <= torch.get_num_threads())
        self.parts = self.weight.detach().view(n_parts, K // n_parts, N)

    def forward(self, x: Tensor) -> Tensor:
        K, N = self.weight.shape
        n_rows = x.numel() // K
        if n_rows > FEW_ROWS:
            return F.linear(x, self.weight.t(), self.bias)
        parts = x.reshape(n_rows, len(self.parts), -1).transpose(0, 1)  # (parts, rows, K / parts)
        y = torch.bmm(parts, self.parts).sum(dim=0)  # (rows, N)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], N)


class ColumnEmbedding(nn.Module):
    """The token embedding on the matrix of a SplitLinear, where a token is a column."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight  # (C, V)

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight.t())  # (B, T, C)


class PlainLinear(nn.Module):
    """For bf16: nn.Linear that leaves oneDNN out for a single row.

    oneDNN's matrix product reads a bf16 matrix at half the speed of torch's own kernel for a
    matrix times a vector, which also adds up in fp32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # (N, K), (N,)
        if not self.weight.is_contiguous():  # a loaded model's matrices are turned over by their strides
            self.weight = nn.Parameter(self.weight.detach().contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > self.weight.shape[1]:
            return F.linear(x, self.weight, self.bias)
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            return F.linear(x, self.weight, self.bias)
        finally:
            torch.backends.mkldnn.enabled = before


PRODUCTS: dict[torch.dtype, type[SplitLinear] | type[PlainLinear]] = {
    torch.float32: SplitLinear,
    torch.bfloat16: PlainLinear,
}
