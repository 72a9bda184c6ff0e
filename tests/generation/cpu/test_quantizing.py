import pytest
import torch

from gpt2cli.generation.cpu.quantizing import CHUNK, LARGEST, quantize_rows


@pytest.mark.parametrize("n_rows", [3, CHUNK + 1])
def test_each_weight_is_at_most_half_a_step_away(n_rows: int) -> None:
    weight = torch.randn(n_rows, 40) * torch.logspace(-30, 3, n_rows)[:, None]
    weight[1] = 0
    whole, scale = torch.empty(n_rows, 40, dtype=torch.int8), torch.empty(n_rows)
    quantize_rows(weight.t().contiguous().t(), whole, scale)
    assert whole.abs().max() == LARGEST and whole.min() >= -LARGEST
    assert scale[1] == 0 and not whole[1].any()
    assert ((whole * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


def test_a_rows_largest_weight_is_kept() -> None:
    weight = torch.tensor([[0.5, -2.54, 1.0]])
    whole, scale = torch.empty(1, 3, dtype=torch.int8), torch.empty(1)
    quantize_rows(weight, whole, scale)
    assert whole.tolist() == [[25, -127, 50]]
    assert scale.item() == pytest.approx(0.02)
