"""Owns int8 weights: a matrix as whole numbers from -127 to 127 and one scale a row.

Symmetric and per row ("absmax"; Dettmers et al. 2022, LLM.int8(), section 2.1, there with columns):
W[n, k] is about scale[n] * Q[n, k]. Here are weights alone; blocked.py rounds its activations in the
same way, products.py none.
"""

import torch
from torch import Tensor

LARGEST = 127  # -128 stays unused, so that both signs reach equally far
CHUNK = 4096  # rows at a time: the temporary copies stay small


@torch.no_grad()
def quantize_rows(weight: Tensor, whole: Tensor, scale: Tensor) -> None:
    """Fill `whole` (N, K) int8 and `scale` (N,) fp32 from `weight` (N, K). A row of zeros has scale 0.

    `whole` may be the beginning of the weight's own memory, if that is contiguous.
    """
    for start in range(0, len(weight), CHUNK):
        rows = weight[start : start + CHUNK].float()  # (n, K)
        largest = rows.abs().amax(dim=1)  # (n,)
        scale[start : start + CHUNK] = largest / LARGEST
        # Of a row of zeros nothing may become 0 / 0.
        steps = rows * (LARGEST / largest.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
        whole[start : start + CHUNK] = steps.round_().to(torch.int8)
