"""Linear layers by oneDNN against torch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from worker.trainer import products
from worker.trainer.products import Linear, by_transposed


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (2, 3, 5, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(1)
    own, torchs = Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    torchs.load_state_dict(own.state_dict())
    results = []
    for layer in (own, torchs):
        x = numbers(*shape).requires_grad_()
        y = layer(x)
        (y * numbers(*y.shape)).sum().backward()
        results.append([y, x.grad, *(each.grad for each in layer.parameters())])
    assert len(results[0]) == 3 + bias
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("turned", [lambda a: a, lambda a: a.t().contiguous().t()])
def test_transposed_views_are_multiplied_like_copies(turned: Callable[[Tensor], Tensor]) -> None:
    a, b, bias = numbers(6, 24), numbers(40, 24), numbers(40)
    torch.testing.assert_close(by_transposed(turned(a), turned(b), bias), a @ b.t() + bias)
    torch.testing.assert_close(by_transposed(turned(a), b), a @ b.t())


def test_half_precision_goes_torch_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products._Linear, "apply", lambda *inputs: pytest.fail("by oneDNN in float32"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Linear(24, 40)(numbers(3, 24)).dtype is torch.bfloat16
