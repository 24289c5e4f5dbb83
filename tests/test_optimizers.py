"""Muon: the orthogonal factor, the update it makes of it, and parameters of any shape."""

import math

import pytest
import torch

from variational_diffusion.training.optimizers import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 9, 9), (4, 1, 5)])
def test_orthogonalised_keeps_the_singular_vectors(shape, generator):
    matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalised(matrices) @ vh.mT
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert (diagonal > 0.65).all()
    assert (diagonal < 1.2).all()
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 16, 32), (2, 32, 16)])
def test_the_small_sums_are_the_iteration_written_out(shape, generator):
    """In float32, for singular values over four orders of magnitude, against float64."""
    scale = torch.diag(torch.logspace(0, -4, shape[2]))
    matrices = torch.randn(shape, generator=generator) @ scale
    x = matrices.double() / torch.linalg.matrix_norm(matrices.double(), keepdim=True)
    for _ in range(5):
        outer = x @ x.mT
        x = 3.4445 * x - 4.7750 * outer @ x + 2.0315 * outer @ outer @ x
    torch.testing.assert_close(orthogonalised(matrices).double(), x, rtol=0, atol=1e-3)


def test_the_scale_of_a_gradient_does_not_matter_and_zero_is_no_direction(generator):
    matrix = torch.randn(1, 4, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(orthogonalised(1e-9 * matrix), orthogonalised(matrix))
    assert not orthogonalised(torch.zeros(1, 4, 6)).any()


@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-30, 1e-44])
def test_a_gradient_too_small_for_its_squares_makes_no_large_step(scale, generator):
    """As that of a layer before one that has left zero by 1e-12 only."""
    found = orthogonalised(scale * torch.randn(1, 16, 16, generator=generator))
    assert torch.linalg.matrix_norm(found, 2) < 1.2


def test_a_step_is_the_orthogonal_factor_of_the_nesterov_momentum(generator):
    """Two steps by hand, for a tall kernel, beside another of the same shape."""
    weights = [
        torch.nn.Parameter(torch.randn(12, 2, 3, generator=generator, dtype=torch.float64))
        for _ in range(2)
    ]
    expected = [w.detach().clone() for w in weights]
    averages = [torch.zeros_like(w) for w in expected]
    optimizer = Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        gradients = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in expected]
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            weight.grad = gradient
            averages[i] = 0.9 * averages[i] + 0.1 * gradient
            ahead = 0.1 * gradient + 0.9 * averages[i]
            update = orthogonalised(ahead.reshape(1, 12, 6)).reshape(12, 2, 3)
            expected[i] = expected[i] * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(2) * update
        optimizer.step()
    for weight, by_hand in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), by_hand)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weight.detach(), torch.ones(4, 4))


def test_an_ill_conditioned_problem_is_solved_sooner_than_by_adam(generator):
    """‖A W B‖² with condition numbers of 100 on both sides, from the same start, best of rates."""
    left, right = (torch.diag(torch.logspace(0, -2, 16)) for _ in range(2))
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    left = q @ left @ q.mT
    start = torch.randn(16, 16, generator=generator)

    def loss_after(make, steps=150):
        best = math.inf
        for rate in (0.003, 0.01, 0.03, 0.1, 0.3):
            weight = torch.nn.Parameter(start.clone())
            optimizer = make([weight], rate)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
                loss = (left @ weight @ right).square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            best = min(best, float(loss.detach()))
        return best

    assert loss_after(Muon) < 0.3 * loss_after(torch.optim.Adam)
