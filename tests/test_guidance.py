"""Guidance against closed forms: Gaussians, of which it is one more Gaussian, and a mixture."""

import math

import pytest
import torch
from torch import nn

from known_answers import ExactDenoiser, exact_vdm
from test_conditions import MEANS, STD, ExactOfClasses, of_classes
from variational_diffusion.conditions import Labels
from variational_diffusion.conditions.guidance import Guided
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM
from variational_diffusion.schedules import FixedLinear

DIMENSIONS = 3


def inputs(generator):
    z = torch.randn(6, DIMENSIONS, generator=generator, dtype=torch.float64)
    return z, torch.linspace(-5, 3, 6, dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0, 3.5])
def test_guidance_between_gaussians_is_the_gaussian_further_out(weight, generator):
    """Both terms have one variance, so ε̂ is that of N(w · mean of the class, std²)."""
    z, gamma = inputs(generator)
    guided = of_classes().given(torch.tensor([1]), guidance=weight)
    exact = exact_vdm(mean=weight * float(MEANS[1]), std=STD, dimensions=DIMENSIONS)
    for found, expected in zip(guided.denoise(z, gamma), exact.denoise(z, gamma), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    drifts = [model.drift(z, gamma) for model in (guided, exact)]
    torch.testing.assert_close(*drifts, rtol=0, atol=1e-12)


class Mixture(nn.Module):
    """The exact noise of one of two classes, or of their even mixture, by its log density."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def log_p(self, z, gamma, conditioning):
        alpha = torch.sigmoid(-gamma).sqrt()[:, None, None]
        variance = alpha.square() * STD**2 + torch.sigmoid(gamma)[:, None, None]
        of_class = -0.5 * ((z[:, None] - alpha * MEANS[:, None]).square() / variance).sum(2)
        none = (conditioning.sum(1, keepdim=True) == 0).to(z)
        return (of_class + (conditioning + 0.5 * none).log()).logsumexp(1)

    def noise(self, z, gamma, conditioning):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            score = torch.autograd.grad(self.log_p(z, gamma, conditioning).sum(), z)[0]
        return -torch.sigmoid(gamma).sqrt()[:, None] * score

    def forward(self, z, gamma, conditioning=None):
        noise = self.noise(z, gamma, conditioning)
        if self.prediction == "noise":
            return noise
        alpha, sigma = (torch.sigmoid(sign * gamma).sqrt()[:, None] for sign in (-1, 1))
        return (noise - sigma * z) / alpha


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_guidance_is_the_score_of_the_sharpened_density(prediction, generator):
    """−ε̂/sigma is the gradient of log p(z) + w log p(c|z), for noise and for velocity alike."""
    z, gamma = inputs(generator)
    weight, network = 2.5, Mixture(prediction)
    given = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    vdm = exact_vdm(dimensions=DIMENSIONS, prediction=prediction)
    vdm.network = Guided(network, given, weight)
    variable = z.clone().requires_grad_()
    none = torch.zeros(6, 2, dtype=torch.float64)
    free = network.log_p(variable, gamma, none)
    # p(c|z) = ½ p(z|c)/p(z), whose constant has no gradient
    class_of = network.log_p(variable, gamma, given.expand(6, -1)) - free
    score = torch.autograd.grad((free + weight * class_of).sum(), variable)[0]
    found = vdm.denoise(z, gamma).noise
    expected = -torch.sigmoid(gamma).sqrt()[:, None] * score
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_outside_of_the_interval_it_is_the_model_itself(generator):
    z, gamma = inputs(generator)
    vdm, label = of_classes(), torch.tensor([0])
    plain, sharp = (vdm.given(label, guidance=w).denoise(z, gamma).noise for w in (1.0, 3.0))
    within = vdm.given(label, guidance=3.0, interval=(-2.0, 2.0)).denoise(z, gamma).noise
    inside = ((gamma >= -2) & (gamma <= 2))[:, None]
    assert 0 < int(inside.sum()) < len(gamma)
    assert torch.equal(within, torch.where(inside, sharp, plain))


class Counting(nn.Module):
    """A network that counts the rows it is called with."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, z, gamma, conditioning=None):
        self.rows.append(len(z))
        return ExactDenoiser(0.0, 1.0, "velocity")(z, gamma)


def test_one_call_does_both_and_no_more_than_what_is_needed(generator):
    network, (z, gamma) = Counting(), inputs(generator)
    condition = torch.ones(1, 2, dtype=torch.float64)
    Guided(network, condition, 2.0)(z, gamma)
    Guided(network, condition, 1.0)(z, gamma)
    Guided(network, condition, 2.0, (10.0, 11.0))(z, gamma)
    assert network.rows == [12, 6, 6]


def test_guided_samples_have_the_moments_of_the_gaussian_further_out():
    """20,000 entries, 60 steps: five standard errors, and the steps' own bias of a hundredth."""
    vdm = of_classes(dimensions=5)
    generator = torch.Generator().manual_seed(2)
    model = vdm.given(torch.tensor([1]), guidance=2.0)
    x = model.sample(4000, steps=60, sampler="ancestral", generator=generator)
    exact = exact_vdm(mean=2 * float(MEANS[1]), std=STD, dimensions=5)
    same = exact.sample(
        4000, steps=60, sampler="ancestral", generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(x, same, rtol=0, atol=1e-9)
    assert abs(float(x.mean()) - 1.6) < 5 * STD / math.sqrt(x.numel()) + 0.03


def test_weights_and_intervals_that_make_no_sense_are_refused():
    condition = torch.ones(1, 2)
    with pytest.raises(InputError, match="guidance = -1"):
        Guided(nn.Identity(), condition, -1.0)
    with pytest.raises(InputError, match="the lower γ comes first"):
        Guided(nn.Identity(), condition, 2.0, (1.0, 1.0))


def test_clipping_comes_after_guidance(generator):
    """A weight of 30 takes x̂ far out of range; in whichever order they are asked for, it is cut."""
    labels = Labels(["low", "high"], [0.5, 0.5])
    parts = ExactOfClasses(), FixedLinear(-6.0, 4.0), Discretized(4), (DIMENSIONS,)
    vdm = VDM(*parts, condition=labels).double()
    z, gamma = inputs(generator)
    label = torch.tensor([1])
    free = vdm.given(label, guidance=30.0).denoise(z, gamma).x
    assert float(free.abs().amax()) > 2
    first, last = (
        vdm.clipped().given(label, guidance=30.0),
        vdm.given(label, guidance=30.0).clipped(),
    )
    found = first.denoise(z, gamma).x
    torch.testing.assert_close(found, last.denoise(z, gamma).x, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, free.clamp(-0.75, 0.75), rtol=0, atol=1e-12)
