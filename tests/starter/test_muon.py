"""Muon: its matrices are orthogonal, whatever their shape and layout, and only hidden ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lorasmith.starter.build.muon import ITERATIONS, Muon, hidden_matrices, orthogonal


def _newton_schulz(matrix: Tensor) -> Tensor:
    """The iteration as it was published, on the matrix itself."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm()
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 8), (16, 144), (24, 30)])
def test_it_is_the_published_iteration(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonal(matrix), _newton_schulz(matrix), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orthogonal(matrix.T), orthogonal(matrix).T)


def test_singular_values_come_out_near_one_and_directions_stay() -> None:
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(20, 20))[0] for _ in range(2))
    found = orthogonal(u @ torch.diag(torch.logspace(0, -1.5, 20)) @ v.T)
    values = torch.diagonal(u.T @ found @ v)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25
    torch.testing.assert_close(u.T @ found @ v, torch.diag(values), rtol=0, atol=1e-4)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_the_layout_in_memory_does_not_matter() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, 3, bias=False)
    lasts = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in (plain, lasts):
        optimizer = Muon(layer.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(step)
            layer(torch.randn(2, 4, 8, 8)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(plain.weight, lasts.weight)


def test_only_hidden_matrices_are_its() -> None:
    model = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 4, 3), "middle": nn.Conv2d(4, 4, 3), "norm": nn.LayerNorm(4),
         "words": nn.Embedding(9, 4), "deep": nn.Sequential(nn.Linear(4, 4)), "heads": nn.Linear(4, 2)}
    )  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in hidden_matrices(model)] == ["middle.weight", "deep.0.weight"]


def test_a_model_that_is_one_layer() -> None:
    layer = nn.Linear(3, 4)
    (weight,) = hidden_matrices(layer)
    assert weight is layer.weight


def test_a_weight_without_a_gradient_stays() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([a, b], lr=0.1)
    a.square().sum().backward()
    optimizer.step()
    assert torch.equal(b, torch.ones(2, 2))
    assert not torch.equal(a, torch.ones(2, 2))


def test_it_goes_on_from_its_state() -> None:
    def trained(steps: int, weight: nn.Parameter, state: dict[str, object] | None) -> tuple[Tensor, dict[str, object]]:
        optimizer = Muon([weight], lr=0.05)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            optimizer.zero_grad()
            (weight @ torch.arange(3.0) - 1).square().sum().backward()
            optimizer.step()
        return weight.detach().clone(), optimizer.state_dict()

    start = torch.eye(3)
    whole, _ = trained(6, nn.Parameter(start.clone()), None)
    half, state = trained(3, nn.Parameter(start.clone()), None)
    again, _ = trained(3, nn.Parameter(half), copy.deepcopy(state))
    assert torch.equal(whole, again)
