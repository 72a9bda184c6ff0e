"""Linear layers and embeddings that replace `nn.Linear` and `nn.Embedding` for decoding on a CPU.

At batch 1 a token costs one read of every weight, and `F.linear` reads at a quarter of the memory's
speed: SplitLinear, RowLinear, Bf16Linear and Int8Linear read faster, from weights in fp32, bf16 or int8.
With 2 to some 100 rows a matmul is too much arithmetic for these kernels and too little for `F.linear`,
which reorders the weights into oneDNN's blocks at every call: the Blocked layers do so once.
swap_linears.py puts the layers into a model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.checkpoints.safetensors_bytes import private_memory
from gpt2cli.generation.cpu import many_rows

FEW_ROWS = 16  # up to here a matmul is memory-bound; beyond, F.linear is as fast
MOST_PARTS = 16
LARGEST = 127  # of int8; -128 is unused, so that the range is symmetric
MIDDLE = 128  # the unsigned number that stands for 0: the processor multiplies unsigned by signed
CHUNK = 4096  # rows converted at a time: the temporary copies stay small
HUGE_PAGE = 1 << 21  # bytes, on x86-64 and most of arm64


class DecodeLinear(nn.Module):
    """Replaces a linear layer; its weights no longer train."""

    def as_embedding(self) -> nn.Module | None:
        """The token embedding on the same matrix; None if its layout has no readable rows."""
        return None


class SplitLinear(DecodeLinear):
    """For fp32: x W^T + b with the channels of x split among the threads, and the parts added up.

    W is stored as (K, N), K channels in and N out, so that each part is a block of whole rows, which one
    thread of a batched matmul reads from end to end.
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
            return many_rows.linear(x, self.weight.t(), self.bias)
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


class RowLinear(DecodeLinear):
    """x W^T + b with W (N, K) in fp32 or bf16; x is rounded to the same precision.

    For a single row in bf16 oneDNN is disabled: it reads at half the speed of torch's own matrix-vector
    kernel, which also sums in fp32.
    """

    dtype = torch.float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # A loaded model's matrices are transposed by their strides; here each row is contiguous.
        self.weight = _fixed(linear.weight.detach(), self.dtype)  # (N, K)
        self.bias = _vector(linear.bias)  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if torch.compiler.is_exporting():
            return _reduced(x, weight, self.bias)
        x = x.to(weight.dtype)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        if weight.dtype is torch.float32:
            return many_rows.linear(x, weight, bias)
        if x.numel() > weight.shape[1]:
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


class Int8Linear(DecodeLinear):
    """x W^T + b with W (N, K) in int8 and a scale per row. Input, output and sums are bf16."""

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
        if len(rows) <= FEW_ROWS:  # without the scales, which would be rounded here
            y = torch._weight_int8pack_mm(rows, self.weight, rows.new_ones(N))
        else:
            y = F.linear(rows, self.weight.bfloat16())  # whole numbers to 127 fit in bf16 exactly
        y = y * self.scale if self.bias is None else torch.addcmul(self.bias, y, self.scale)
        return y.bfloat16().view(*x.shape[:-1], N)

    def as_embedding(self) -> nn.Module:
        return Int8Embedding(self.weight, self.scale)


class RowEmbedding(nn.Module):
    """A row of W (V, C) in fp32 or bf16 for each id; the residual stream is fp32."""

    def __init__(self, weight: Tensor, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else _fixed(weight, dtype)  # (V, C)

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight).float()  # (B, T, C)


class Int8Embedding(nn.Module):
    """The token embedding on the matrix of an Int8Linear."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale  # (V, C), (V,)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.weight[input_ids].float() * self.scale[input_ids][..., None]  # (B, T, C)


class BlockedLinear(DecodeLinear):
    """x W^T + b in fp32; the output is always fp32."""

    dtype = torch.float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().to(self.dtype).contiguous()  # (N, K)
        self.blocks = many_rows.reorder(weight)
        self.bias = None if linear.bias is None else linear.bias.detach().to(self.dtype)  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return many_rows.blocked_linear(x, self.blocks, self.bias).float()


class BlockedBf16Linear(BlockedLinear):
    """The same with x and W rounded to bf16, and sums in fp32."""

    dtype = torch.bfloat16


class BlockedInt8Linear(DecodeLinear):
    """x W^T + b with W and x quantised per row, and integer sums (Dettmers et al. 2022, LLM.int8(),
    section 2.1). No row of x depends on the others.
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
        # The cast truncates; adding 0.5 makes it round.
        whole = (rows / scale).add_(MIDDLE + 0.5).to(torch.uint8)  # (n, K)
        y = torch.ops.onednn.qlinear_pointwise(
            *(whole, 1.0, MIDDLE),
            *(self.blocks, self.scale, self.zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)
        return y.view(*x.shape[:-1], -1)


def can_block(precision: str) -> bool:
    """Whether oneDNN has kernels for this precision on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if precision == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return precision == "fp32" or bool(torch.cpu._is_vnni_supported())


@torch.no_grad()
def quantize_rows(weight: Tensor, whole: Tensor, scale: Tensor) -> None:
    """Fill `whole` (N, K) int8 and `scale` (N,) fp32 from `weight` (N, K), which is about scale * whole.

    Symmetric and per row, from -127 to 127 ("absmax"; Dettmers et al. 2022, LLM.int8(), section 2.1,
    there per column). A row of zeros has scale 0. `whole` may reuse the weight's own memory, if that is
    contiguous.
    """
    for start in range(0, len(weight), CHUNK):
        rows = weight[start : start + CHUNK].float()  # (n, K)
        largest = rows.abs().amax(dim=1)  # (n,)
        scale[start : start + CHUNK] = largest / LARGEST
        # clamp: a row of zeros must not become 0 / 0
        steps = rows * (LARGEST / largest.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
        whole[start : start + CHUNK] = steps.round_().to(torch.int8)


def in_huge_pages(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor in pages of 2 MB if the system has them.

    They need fewer TLB entries than pages of 4 KiB: weights are read at 34 GB/s instead of 24 (two cores
    of an AMD EPYC).
    """
    n_bytes = torch.Size(shape).numel() * dtype.itemsize
    if n_bytes < HUGE_PAGE:
        return torch.empty(shape, dtype=dtype)
    whole = torch.frombuffer(private_memory(n_bytes + 2 * HUGE_PAGE), dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + n_bytes].view(dtype).view(shape)


def _reduced(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """The matmul of one row in a form that compiles well: sums in fp32, one loop over two halves of W, so
    that two streams come from memory.
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
    """The tensor (N, K) as frozen weights, row by row in `_memory_of` it."""
    dtype = dtype or tensor.dtype
    memory = _memory_of(tensor, dtype)
    if not tensor.is_meta and not (tensor.is_contiguous() and tensor.dtype is dtype):
        step = CHUNK if tensor.is_contiguous() else len(tensor)  # transposed, it is read as a whole first
        for start in range(0, len(tensor), step):
            memory[start : start + step] = tensor[start : start + step].to(dtype, copy=True)
    return nn.Parameter(memory, requires_grad=False)


def _memory_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for weights of its shape: its own if that is one piece, else huge pages.

    A loaded model lies in huge pages already, and the system clears new memory, which for 124M takes longer
    than everything else here.
    """
    piece = tensor if tensor.is_contiguous() else tensor.t()
    if tensor.is_meta:
        return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
    if not piece.is_contiguous() or dtype.itemsize > tensor.dtype.itemsize:
        return in_huge_pages(tensor.shape, dtype)
    return piece.view(-1).view(dtype)[: tensor.numel()].view(tensor.shape)


def _vector(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
