"""Real values keep their digits; shifting or scaling them changes the bits by log scale alone."""

import copy
import math

import numpy as np
import pytest
import torch

from known_answers import exact_vdm
from variational_diffusion import MLP, VDM, FixedLinear, Gaussian
from variational_diffusion.anomaly import profiles
from variational_diffusion.conditions import Arrays
from variational_diffusion.editing import decode, encode
from variational_diffusion.grids import uniform_in_time
from variational_diffusion.likelihood import (
    ContinuousBound,
    DiscreteBound,
    ImportanceWeighted,
    ODELikelihood,
    maps,
)

UNITS = [(1e6, 0.0), (1.0, 1e6), (60.0, 1.7e9), (1e-9, 0.0), (1e-9, -1e-3), (1e9, -1e12)]
"""a and b of a x + b. float64 holds a x + b to 2e-8 of a or better, which is all that is lost."""


def in_units(vdm, a, b):
    """The same model of a x + b."""
    other = copy.deepcopy(vdm)
    other.decoder = Gaussian(location=[b] * vdm.shape[0], scale=[a] * vdm.shape[0])
    return other


def standard_normal(n, generator):
    return 0.3 + 0.5 * torch.randn(n, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("a", "b"), UNITS)
def test_distinct_values_stay_distinct_in_a_model_of_float32(a, b):
    x = a * torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 1))) + b
    decoder = Gaussian(location=[b], scale=[a]).float()
    u = decoder.encode(x).float()
    assert len(u.unique()) > 1990  # of float32 itself, some of 2,000 may be alike
    torch.testing.assert_close(decoder.decode(u), x, rtol=0, atol=4e-7 * a)
    assert len(decoder.sample(u, torch.tensor(-10.0)).unique()) > 1990


@pytest.mark.parametrize("convert", ["float", "double", "half", "bfloat16"])
def test_location_and_scale_stay_exact_in_every_precision(convert):
    location, scale = [1.7e9 + 1 / 3, 0.1], [60.1, 1e-9 / 3]
    vdm = VDM(MLP((2,)), FixedLinear(), Gaussian(location, scale), (2,))
    vdm.condition = Arrays([2], location, scale)
    converted = copy.deepcopy(getattr(vdm, convert)())
    for part in (converted.decoder, converted.condition):
        assert part.location.tolist() == location
        assert part.scale.tolist() == scale
    assert converted.schedule.gamma_0.dtype == converted.encode(torch.zeros(3, 2)).dtype
    again = VDM(MLP((2,)), FixedLinear(), Gaussian([0.0] * 2, [1.0] * 2), (2,))
    again.load_state_dict(vdm.state_dict())
    assert again.decoder.location.tolist() == location


def test_weights_of_an_earlier_version_mean_what_they_meant():
    """They hold location and scale in float32, by which their model was trained."""
    decoder = Gaussian([0.1, 1e6 + 0.3], [0.7, 3.3])
    stored = {"location": torch.tensor([0.1, 1e6 + 0.3]), "scale": torch.tensor([0.7, 3.3])}
    decoder.load_state_dict(stored)
    assert decoder.location.dtype == torch.float64
    assert torch.equal(decoder.location, stored["location"].double())
    assert torch.equal(decoder.scale, stored["scale"].double())


@pytest.mark.parametrize(("a", "b"), UNITS)
def test_conditions_keep_their_digits(a, b):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 2)))
    plain = Arrays([2], [0.0, 0.0], [1.0, 1.0]).encode(values)
    moved = Arrays([2], [b, b], [a, a]).float().encode(a * values + b)
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-7)


ESTIMATORS = {
    "bound": ContinuousBound(2),
    "chain": DiscreteBound(uniform_in_time(FixedLinear(-6.0, 4.0), 5).double(), None),
    "ode": ODELikelihood(),
    "ode, exact": ODELikelihood(probes=None),
    "variational": ODELikelihood("variational"),
    "importance": ImportanceWeighted(2, ODELikelihood("variational", probes=3)),
}


@pytest.mark.parametrize(("a", "b"), UNITS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_units_change_the_likelihood_by_log_scale_alone(name, a, b, generator):
    """−log p(a x + b) = −log p(x) + d log a, by the same draws."""
    vdm, x = exact_vdm(), standard_normal(50, generator)
    estimates = [
        ESTIMATORS[name](model, data, torch.Generator().manual_seed(1)).total
        for model, data in ((vdm, x), (in_units(vdm, a, b), a * x + b))
    ]
    torch.testing.assert_close(
        estimates[1] - estimates[0],
        torch.full((50,), 4 * math.log(a), dtype=torch.float64),
        rtol=0,
        atol=2e-6,
    )


@pytest.mark.parametrize(("a", "b"), UNITS)
def test_units_change_the_likelihood_in_float32_by_log_scale_alone(a, b, generator):
    vdm, x = exact_vdm().float(), standard_normal(50, generator)
    estimates = [
        ContinuousBound(2)(model, data, torch.Generator().manual_seed(1)).total.double()
        for model, data in ((vdm, x), (in_units(vdm, a, b), a * x + b))
    ]
    # a sum of some hundred nats in float32, to 6e-8 of it, and u rounded anew
    torch.testing.assert_close(
        estimates[1] - estimates[0],
        torch.full((50,), 4 * math.log(a), dtype=torch.float64),
        rtol=0,
        atol=2e-4,
    )


@pytest.mark.parametrize(("a", "b"), UNITS)
def test_samples_scores_and_edits_follow_the_units(a, b, generator):
    vdm, x = exact_vdm(), standard_normal(20, generator)
    other = in_units(vdm, a, b)

    def draws(model):
        return model.sample(500, steps=10, generator=torch.Generator().manual_seed(2))

    moved, plain = draws(other), draws(vdm)
    torch.testing.assert_close((moved - b) / a, plain, rtol=0, atol=1e-6)
    assert len(moved.unique()) == moved.numel()
    there, back = decode(vdm, encode(vdm, x)), decode(other, encode(other, a * x + b))
    torch.testing.assert_close(there, x, rtol=0, atol=1e-3)
    torch.testing.assert_close((back - b) / a, there, rtol=0, atol=1e-5)
    both = [
        next(profiles(model, [data], generator=torch.Generator().manual_seed(3)))
        for model, data in ((vdm, x), (other, a * x + b))
    ]
    np.testing.assert_allclose(both[0].bands, both[1].bands, atol=1e-6)
    np.testing.assert_allclose(both[0].statistics, both[1].statistics, atol=1e-6)
    shift = both[1].reconstruction - both[0].reconstruction
    np.testing.assert_allclose(shift, math.log2(a), atol=1e-6)
    entries = [
        maps.bits_of_entries(model, data, generator=torch.Generator().manual_seed(4))
        for model, data in ((vdm, x), (other, a * x + b))
    ]
    torch.testing.assert_close(
        entries[1] - entries[0], torch.full_like(entries[0], math.log2(a)), rtol=0, atol=1e-6
    )
