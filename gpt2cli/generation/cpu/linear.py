"""Owns the products that decoding one row on a CPU uses in the place of `nn.Linear`.

At batch 1 a token costs one read of every weight, and `F.linear` reads at a quarter of the
memory's speed. The modules here compute the same products with kernels that read faster, from
weights in fp32, bf16 or int8. For several rows there is blocked.py; packing.py puts them in place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.generation.cpu.large_pages import in_huge_pages
from gpt2cli.generation.cpu.quantizing import CHUNK, quantize_rows

FEW_ROWS = 16  # up to here a product waits for the memory; beyond, F.linear is as fast
MOST_PARTS = 16


class Packed(nn.Module):
    """A product that takes the place of a linear layer."""

    def as_embedding(self) -> nn.Module | None:
        """The token embedding on the same matrix; None where its layout is not made for reading a row."""
        return None


class SplitLinear(Packed):
    """For fp32: x W^T + b with the channels of x split among the threads, and the parts added up.

    W is kept as (K, N), K channels in and N out, so that each part is a block of whole rows: a
    batched product gives every thread one of them to read from end to end.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = _fixed(linear.weight.detach().float().t())  # (K, N)
        self.bias = _vector(linear.bias)
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

    def as_embedding(self) -> nn.Module:
        return ColumnEmbedding(self.weight)


class ColumnEmbedding(nn.Module):
    """The token embedding on the matrix of a SplitLinear, where a token is a column."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight  # (C, V)

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight.t())  # (B, T, C)


class RowLinear(Packed):
    """x W^T + b with W (N, K) in fp32 or bf16. Whatever comes in is rounded to the weights' precision.

    For a single row in bf16 oneDNN is left out: it reads at half the speed of torch's own kernel for
    a matrix times a vector, which also adds up in fp32.
    """

    dtype = torch.float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # A loaded model's matrices are turned over by their strides; here each row lies together.
        self.weight = _fixed(linear.weight.detach(), self.dtype)  # (N, K)
        self.bias = _vector(linear.bias)  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if torch.compiler.is_exporting():
            return _reduced(x, weight, self.bias)
        x = x.to(weight.dtype)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        if x.numel() > weight.shape[1] or weight.dtype is torch.float32:
            return F.linear(x, weight, bias)
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            return F.linear(x, weight, bias)
        finally:
            torch.backends.mkldnn.enabled = before

    def as_embedding(self) -> nn.Module:
        return RowEmbedding(self.weight)


class Bf16Linear(RowLinear):
    dtype = torch.bfloat16


class Int8Linear(Packed):
    """x W^T + b with W (N, K) as whole numbers and a scale a row. In and out in bf16, like its sums."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        whole = _memory_of(weight, torch.int8)
        self.scale = nn.Parameter(weight.new_empty(len(weight), dtype=torch.float32), requires_grad=False)
        if not weight.is_meta:
            quantize_rows(weight.contiguous(), whole, self.scale)
        self.weight = nn.Parameter(whole, requires_grad=False)  # (N, K)
        self.bias = _vector(linear.bias)  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return _reduced(x, self.weight, self.bias, self.scale)
        N, K = self.weight.shape
        rows = x.reshape(-1, K).bfloat16()
        if len(rows) <= FEW_ROWS:  # the sums alone: scales would be rounded here
            y = torch._weight_int8pack_mm(rows, self.weight, rows.new_ones(N))
        else:
            y = F.linear(rows, self.weight.bfloat16())  # whole numbers to 127 fit in bf16 exactly
        y = y * self.scale if self.bias is None else torch.addcmul(self.bias, y, self.scale)
        return y.bfloat16().view(*x.shape[:-1], N)

    def as_embedding(self) -> nn.Module:
        return Int8Embedding(self.weight, self.scale)


class RowEmbedding(nn.Module):
    """A row of W (V, C) in fp32 or bf16 for each id; the residual stream that it begins is fp32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else _fixed(weight)  # (V, C)

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight).float()  # (B, T, C)


class Bf16Embedding(RowEmbedding):
    def __init__(self, weight: Tensor) -> None:
        super().__init__(_fixed(weight, torch.bfloat16))


class Int8Embedding(nn.Module):
    """The same on the matrix of an Int8Linear."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale  # (V, C), (V,)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.weight[input_ids].float() * self.scale[input_ids][..., None]  # (B, T, C)


def _reduced(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """The product of one row as the compiler likes it: sums in fp32, one loop over two halves of W.

    Two rows far apart are read at a time, so that two streams come from the memory.
    """
    N, K = weight.shape
    row = x.reshape(K)
    y = torch.cat([(half.float() * row).sum(dim=-1) for half in weight.tensor_split(2)])  # (N,)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.view(*x.shape[:-1], N)


def _fixed(tensor: Tensor, dtype: torch.dtype | None = None) -> nn.Parameter:
    """The tensor (N, K) as weights that do not learn, row after row in `_memory_of` it."""
    dtype = dtype or tensor.dtype
    memory = _memory_of(tensor, dtype)
    if not tensor.is_meta and not (tensor.is_contiguous() and tensor.dtype is dtype):
        step = CHUNK if tensor.is_contiguous() else len(tensor)  # turned over, it is read as a whole first
        for start in range(0, len(tensor), step):
            memory[start : start + step] = tensor[start : start + step].to(dtype, copy=True)
    return nn.Parameter(memory, requires_grad=False)


def _memory_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for weights of its shape: its own, where that is one piece; else large pages.

    A model that was loaded lies in large pages already, and new memory has to be cleared by the
    system, which for 124M takes longer than all else that is done here.
    """
    piece = tensor if tensor.is_contiguous() else tensor.t()
    if tensor.is_meta:
        return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
    if not piece.is_contiguous() or dtype.itemsize > tensor.dtype.itemsize:
        return in_huge_pages(tensor.shape, dtype)
    return piece.view(-1).view(dtype)[: tensor.numel()].view(tensor.shape)


def _vector(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
