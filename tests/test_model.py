"""The model: what its two heads say of each other, the ODE's drift, and building from a table."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from known_answers import exact_vdm
from variational_diffusion import process
from variational_diffusion.config import Component, ModelConfig
from variational_diffusion.decoders import Discretized, Gaussian
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM, build, complete
from variational_diffusion.networks import MLP
from variational_diffusion.schedules import FixedLinear


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_the_estimates_of_noise_and_data_add_up_to_z(prediction, generator):
    vdm = exact_vdm(prediction=prediction)
    z = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    gamma = torch.linspace(-6, 4, 5, dtype=torch.float64)
    noise, x = vdm.denoise(z, gamma)
    alpha, sigma = process.alpha(gamma)[:, None], process.sigma(gamma)[:, None]
    torch.testing.assert_close(alpha * x + sigma * noise, z, rtol=1e-12, atol=1e-12)


def test_the_two_heads_of_one_denoiser_agree(generator):
    z = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    gamma = torch.linspace(-6, 4, 5, dtype=torch.float64)
    a, b = (exact_vdm(prediction=p).denoise(z, gamma) for p in ("noise", "velocity"))
    torch.testing.assert_close(a.noise, b.noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)


def test_the_drift_carries_the_marginals(generator):
    """For Gaussian data the ODE is linear: z − alpha m grows as the marginal's std."""
    mean, std = 0.3, 0.5
    vdm = exact_vdm(mean=mean, std=std)
    z = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    gamma = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    centre = process.alpha(gamma) * mean
    spread = (process.alpha(gamma) ** 2 * std**2 + process.sigma(gamma) ** 2).sqrt()
    (d_centre,) = torch.autograd.grad(centre, gamma, retain_graph=True)
    (d_log_spread,) = torch.autograd.grad(spread.log(), gamma)
    expected = d_centre + (z - centre.detach()) * d_log_spread
    torch.testing.assert_close(vdm.drift(z, gamma.detach()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_the_drift_is_the_velocity_scaled(prediction, generator):
    """dz/dγ = ½ alpha sigma v̂, with γ for each example."""
    vdm = exact_vdm(prediction=prediction)
    z = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    gamma = torch.linspace(-6, 4, 5, dtype=torch.float64)
    velocity = exact_vdm().network(z, gamma)
    scale = 0.5 * (gamma.sigmoid() * (-gamma).sigmoid()).sqrt()
    torch.testing.assert_close(vdm.drift(z, gamma), scale[:, None] * velocity)


def test_reverse_is_the_posterior_at_the_estimate(generator):
    vdm = exact_vdm()
    z = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    gamma_t, gamma_s = torch.tensor(1.0).double(), torch.tensor(-2.0).double()
    alpha_s, alpha_t = process.alpha(gamma_s), process.alpha(gamma_t)
    c = 1 - torch.exp(gamma_s - gamma_t)
    noise = vdm.denoise(z, gamma_t).noise
    p = vdm.reverse(z, gamma_t, gamma_s)
    mean = alpha_s / alpha_t * (z - process.sigma(gamma_t) * c * noise)
    torch.testing.assert_close(p.mean, mean, rtol=1e-10, atol=1e-10)
    variance = (1 - alpha_s**2) * c
    torch.testing.assert_close(p.std**2, variance, rtol=1e-10, atol=0)


class Recorder(nn.Module):
    """A network of a user's own, that keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, z, gamma, conditioning=None):
        self.gamma, self.conditioning = gamma, conditioning
        return self.scale * z


def test_any_module_can_be_the_network(generator):
    network = Recorder()
    vdm = VDM(network, FixedLinear(-13.3, 5.0), Discretized(256), (2, 3), "noise")
    labels = torch.arange(4)
    x = torch.randint(0, 256, (4, 2, 3), generator=generator)
    vdm.vlb(x, conditioning=labels, generator=generator).total.sum().backward()
    assert network.gamma.shape == (4,)
    assert torch.equal(network.conditioning, labels)
    assert network.scale.grad != 0
    vdm.denoise(torch.zeros(4, 2, 3), torch.tensor(0.0), labels + 2)
    assert torch.equal(network.conditioning, labels + 2)
    vdm.sample(4, steps=2)
    assert network.conditioning is None
    assert network.gamma.shape == (4,)


def test_autocast_reaches_the_network_and_nothing_else(generator):
    """Products outside of it, such as a schedule's, would lose γ; the bound stays in float32."""
    seen = {}

    class Watched(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen[self] = out.dtype
            return out

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = Watched(3, 3)

        def forward(self, z, gamma, conditioning=None):
            return self.dense(z)

    class Linear(FixedLinear):
        def __init__(self):
            super().__init__(gamma_min=-5.0, gamma_max=5.0)
            self.dense = Watched(1, 1)

        def shape_and_rate(self, t):
            self.dense(t[..., None])
            return super().shape_and_rate(t)

    torch.manual_seed(0)
    vdm = VDM(Network(), Linear(), Gaussian(), (3,))
    x = torch.randn(2, 3, generator=generator)
    bound = vdm.in_precision(torch.bfloat16).vlb(x, generator=torch.Generator().manual_seed(0))
    assert bound.total.dtype == torch.float32
    assert seen == {vdm.network.dense: torch.bfloat16, vdm.schedule.dense: torch.float32}
    exact = vdm.vlb(x, generator=torch.Generator().manual_seed(0))
    assert seen[vdm.network.dense] == torch.float32
    torch.testing.assert_close(bound.total, exact.total, rtol=0.02, atol=0.02)
    assert not torch.equal(bound.total, exact.total)


def test_times_can_be_given(generator):
    vdm = VDM(Recorder(), FixedLinear(-10.0, 10.0), Gaussian(), (2,), "noise")
    vdm.vlb(torch.zeros(3, 2), draws=vdm.draw(3, times=torch.tensor([0.0, 0.25, 0.5])))
    torch.testing.assert_close(vdm.network.gamma, torch.tensor([-10.0, -5.0, 0.0]))


def a_config(**changes):
    parts = {
        "decoder": Component(name="discretized", options={"levels": 17}),
        "schedule": Component(name="monotone", options={"hidden": 8}),
        "network": Component(name="mlp", options={"width": 16, "levels": 17}),
    }
    return ModelConfig(shape=(1, 2, 2), **{**parts, **changes})


def test_building_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (build(a_config(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [vdm.network.dense_in.weight for vdm in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_completed_configuration_holds_the_defaults_and_builds_the_same():
    config = complete(a_config())
    assert config.network.options["blocks"] == 4
    assert config.network.options["width"] == 16
    assert config.schedule.options["gamma_min"] == -13.3
    assert complete(config) == config
    for name, value in build(a_config()).state_dict().items():
        assert torch.equal(value, build(config).state_dict()[name])


@pytest.mark.parametrize(
    ("part", "component", "message"),
    [
        (
            "network",
            Component(name="dit"),
            r"network = 'dit': known are unet, paper-unet",
        ),
        ("schedule", Component(name="sigmoid"), r"schedule = 'sigmoid': known are fixed-linear"),
        ("decoder", Component(name="x"), r"decoder = 'x': known are discretized, gaussian"),
        (
            "network",
            Component(name="mlp", options={"depth": 3}),
            r"network.depth: mlp has the options .*width, blocks",
        ),
    ],
)
def test_unknown_parts_and_options_are_named(part, component, message):
    for function in (build, complete):
        with pytest.raises(InputError, match=message):
            function(a_config(**{part: component}))


def test_a_wrong_shape_and_a_wrong_prediction_are_refused():
    with pytest.raises(InputError, match=r"\(3, 5\): the model takes \(batch, 4\)"):
        exact_vdm().vlb(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(InputError, match="steps = 0: a chain has one step or more"):
        exact_vdm().vlb(torch.zeros(3, 4, dtype=torch.float64), steps=0)
    with pytest.raises(InputError, match=r"prediction = 'x0': known are"):
        VDM(Recorder(), FixedLinear(), Gaussian(), (2,), "x0")


def test_memory_of_a_training_step_does_not_grow_with_the_number_of_levels():
    """Elements of every tensor kept for the backward pass of the whole bound."""
    sizes = []
    for levels in (17, 256, 65_536):
        kept: list[int] = []
        gamma_min = -13.3 + 2 * math.log(256 / levels)
        vdm = VDM(
            MLP((40,), levels=levels, width=8, blocks=1),
            FixedLinear(gamma_min, 5.0),
            Discretized(levels),
            (40,),
        )
        with saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t):
            vdm.vlb(torch.zeros(16, 40).long()).total.sum().backward()
        sizes.append(sum(kept))
    assert sizes[0] == sizes[1] == sizes[2]


class Returning(nn.Module):
    """A network that returns what a function makes of z."""

    def __init__(self, of):
        super().__init__()
        self.of, self.weight = of, nn.Parameter(torch.ones(()))

    def forward(self, z, gamma, conditioning=None):
        return self.of(self.weight * z)


MISFITS = {
    "one channel of three": lambda z: z[:, :1],
    "one row": lambda z: z[..., :1, :],
    "no axis of channels": lambda z: z[:, 0],
    "one example": lambda z: z[:1],
    "another type": lambda z: z.bfloat16(),
    "more precise": lambda z: z.double(),
}


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("name", MISFITS)
def test_an_output_that_does_not_fit_z_is_refused(name, clipped):
    """All of them would broadcast, and samples come out."""
    network = Returning(MISFITS[name])
    vdm = VDM(network, FixedLinear(-6.0, 4.0), Discretized(16), (3, 4, 4))
    model = vdm.clipped() if clipped else vdm
    x = torch.zeros(2, 3, 4, 4).long()
    for use in (lambda: model.sample(2, steps=2), lambda: model.vlb(x)):
        with pytest.raises(InputError, match=r"output has shape .*of shape \(2, 3, 4, 4\)"):
            use()


def test_under_autocast_an_output_of_half_precision_is_taken():
    vdm = VDM(nn.Sequential(), FixedLinear(-6.0, 4.0), Gaussian(), (3,))
    vdm.network = Returning(nn.Linear(3, 3))
    z, gamma = torch.ones(2, 3), torch.tensor(0.0)
    exact = vdm.denoise(z, gamma)
    with torch.autocast("cpu", torch.bfloat16):
        of_the_caller = vdm.denoise(z, gamma)
    half = vdm.in_precision(torch.bfloat16)
    for found in (of_the_caller, half.denoise(z, gamma), half.drift(z, gamma)):
        assert all(part.dtype == torch.float32 for part in found)
    torch.testing.assert_close(of_the_caller.x, exact.x, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_refused(dtype):
    vdm = VDM(Returning(lambda z: z), FixedLinear(), Discretized(256), (3, 4, 4)).to(dtype)
    x = torch.zeros(2, 3, 4, 4).long()
    for use in (lambda: vdm.sample(2, steps=2), lambda: vdm.vlb(x), lambda: vdm.vlb(x, steps=5)):
        with pytest.raises(InputError, match=rf"z has type {dtype}.*float64.*in_precision"):
            use()


@pytest.mark.parametrize("decoder", [Discretized(256), Gaussian()])
def test_samples_of_weights_that_are_not_finite_are_refused(decoder):
    for value in (math.nan, math.inf):
        network = Returning(lambda z: z)
        network.weight.data.fill_(value)
        vdm = VDM(network, FixedLinear(-13.3, 5.0), decoder, (3,))
        with pytest.raises(InputError, match=r"not finite in 4 of 4 examples.*weights"):
            vdm.sample(4, steps=3)


def loop(vdm, levels):
    """Take the steps of a chain from level to level."""
    z = torch.zeros(2, *vdm.shape)
    for t, s in itertools.pairwise(levels):
        z = vdm.reverse(z, torch.tensor(t), torch.tensor(s)).mean


def small(gamma_min=-5.0, gamma_max=5.0):
    return VDM(MLP((2,), width=8, blocks=1), FixedLinear(gamma_min, gamma_max), Gaussian(), (2,))


def test_a_loop_over_times_is_warned_of_once():
    vdm = small()
    with pytest.warns(UserWarning, match=r"look like times t: it takes γ\(t\), from 5\.0 to -5\.0"):
        loop(vdm, [1.0, 0.75, 0.5, 0.25, 0.0])
    loop(vdm, [1.0, 0.75, 0.5, 0.25, 0.0])  # a second warning would be an error
    with pytest.warns(UserWarning, match="look like times"):
        loop(small(), [1.0, 0.5, 1e-5])  # many loops end just above 0


@pytest.mark.parametrize(
    ("vdm", "levels"),
    [
        (small(), [5.0, 3.0, 1.0, 0.5, 0.0, -2.0, -5.0]),  # a chain of γ that passes 1 and 0
        (small(), [1.0, 0.0]),  # one step
        (small(), [0.9, 0.4, 0.0]),  # from a level within, as of `vary`
        (small(), [1.0, 0.5, 0.2, -0.3, -5.0]),
        (small(0.0, 1.0), [1.0, 0.5, 0.0]),  # levels of this schedule
    ],
)
def test_a_chain_of_levels_is_not_warned_of(vdm, levels):
    loop(vdm, levels)


def test_samplers_are_not_warned_of(generator):
    for steps in (1, 5, 10, 20):  # the even grid from 5 to −5 has levels at exactly 1 and 0
        small().sample(2, steps=steps, sampler="ancestral", generator=generator)


def test_a_model_is_described_in_a_line():
    count = sum(p.numel() for p in small().parameters())
    assert repr(small()) == f"VDM(MLP of 2, FixedLinear, Gaussian, {count:,} parameters)"
