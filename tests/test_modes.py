"""What draws or measures does so in evaluation mode, and leaves every module in its own."""

import pytest
import torch
from torch import nn

from variational_diffusion import anomaly, editing, flow
from variational_diffusion.conditions import Labels
from variational_diffusion.decoders import Discretized
from variational_diffusion.editing.operators import Measurement
from variational_diffusion.grids import uniform_in_gamma
from variational_diffusion.likelihood import (
    ContinuousBound,
    DiscreteBound,
    ImportanceWeighted,
    ODELikelihood,
    bits_of_entries,
    classification,
    evaluate,
    loss_profile,
)
from variational_diffusion.model import VDM
from variational_diffusion.modes import evaluating, in_evaluation_mode
from variational_diffusion.sampling import SAMPLERS
from variational_diffusion.schedules import Adaptive


class Dropping(nn.Module):
    """A network whose output shows its mode, with a part that a user keeps in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.dropped, self.kept = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, z, gamma, conditioning=None):
        shift = 0.0 if conditioning is None else conditioning.sum()
        return self.kept(self.dropped(torch.tanh(z + shift)))


def a_model():
    network, schedule = Dropping(), Adaptive(-6.0, 4.0, bins=8)
    labels = Labels(["a", "b"], [0.5, 0.5])
    vdm = VDM(network, schedule, Discretized(16), (1, 4, 4), condition=labels).train()
    network.kept.eval()
    return vdm


X = torch.randint(0, 16, (2, 1, 4, 4), generator=torch.Generator().manual_seed(2))
MASK = torch.arange(16).reshape(1, 4, 4) % 2 == 0


def grid(vdm, steps=3):
    return uniform_in_gamma(vdm.schedule, steps)


def last(path):
    *_, z = path
    return z


def the_flow(vdm, generator):
    z = torch.randn(2, 1, 4, 4, generator=generator)
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    return flow.solve(vdm, z, gamma_1, gamma_0, tolerance=1e-2).z


def restored(vdm, generator):
    half = Measurement(lambda x: x[..., :2], 0.1)
    y = torch.zeros(2, 1, 4, 2)
    return last(editing.posterior_samples(vdm, y, half, grid(vdm), generator=generator))


USES = {
    **{
        f"sample by {name}": lambda vdm, g, name=name: vdm.sample(
            2, steps=2, sampler=name, generator=g
        )
        for name in SAMPLERS
    },
    "sample of a label": lambda vdm, g: vdm.given(torch.tensor([1])).sample(
        2, steps=2, generator=g
    ),
    "infinite": lambda vdm, g: ContinuousBound(2)(vdm, X, g).total,
    "chain": lambda vdm, g: DiscreteBound(grid(vdm), None)(vdm, X, g).total,
    "flow": lambda vdm, g: ODELikelihood(tolerance=1e-4)(vdm, X, g).total,
    "importance": lambda vdm, g: (
        ImportanceWeighted(2, ODELikelihood(probes=3, tolerance=1e-4))(vdm, X, g).total
    ),
    "evaluate": lambda vdm, g: last(evaluate(vdm, [X, X], generator=g)).total,
    "entries": lambda vdm, g: bits_of_entries(vdm, X, draws=2, generator=g),
    "classes": lambda vdm, g: classification.class_bounds(vdm, X, seed=3),
    "profile": lambda vdm, g: last(loss_profile.measure(vdm, [X, X], generator=g)).error,
    "errors": lambda vdm, g: (
        last(loss_profile.noise_errors(vdm, [X, X], bins=1, generator=g)).error
    ),
    "bands": lambda vdm, g: torch.from_numpy(
        last(anomaly.profiles(vdm, [X], bands=4, generator=g)).bands
    ),
    "solve": the_flow,
    "inpaint": lambda vdm, g: last(editing.inpaint(vdm, X, MASK, grid(vdm), generator=g)),
    "restore": restored,
    "vary": lambda vdm, g: last(editing.variations(vdm, X, grid(vdm), generator=g)),
    "encode": lambda vdm, g: editing.encode(vdm, X, tolerance=1e-2, generator=g),
    "interpolate": lambda vdm, g: last(
        editing.interpolate(vdm, X, X.flip(0), [0.5], tolerance=1e-2, generator=g)
    ),
}


@pytest.mark.parametrize("name", USES)
def test_training_mode_changes_nothing_and_stays(name):
    vdm = a_model()
    modes = {key: module.training for key, module in vdm.named_modules()}
    memory = {key: value.clone() for key, value in vdm.state_dict().items()}
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    found = USES[name](vdm, torch.Generator().manual_seed(1))
    assert {key: module.training for key, module in vdm.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout would draw from it
    assert all(torch.equal(value, memory[key]) for key, value in vdm.state_dict().items())
    expected = USES[name](a_model().eval(), torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)


def test_a_bound_that_is_not_differentiated_teaches_the_schedule_nothing():
    vdm = a_model()
    memory = {key: value.clone() for key, value in vdm.state_dict().items()}
    for differentiated in (False, True):
        with torch.set_grad_enabled(differentiated):
            vdm.vlb(X, generator=torch.Generator().manual_seed(1))
        assert all(torch.equal(value, memory[key]) for key, value in vdm.state_dict().items())


def test_a_network_in_training_mode_does_drop():
    """The others could not fail with one that does not."""
    vdm = a_model()
    z, gamma = torch.ones(2, 1, 4, 4), torch.tensor(0.0)
    assert not torch.equal(vdm.denoise(z, gamma).x, vdm.eval().denoise(z, gamma).x)


def test_a_loop_has_the_model_in_its_own_mode():
    vdm = a_model()
    first, second = (vdm.trajectory(2, steps=3, sampler="ddim") for _ in range(2))
    for _ in zip(first, second, strict=True):  # one within the other
        assert vdm.network.dropped.training
        assert not vdm.network.kept.training
    vdm.eval()
    for _ in vdm.trajectory(2, steps=2):
        assert not vdm.training
    assert not vdm.training


def test_modes_come_back_after_an_error():
    vdm = a_model()

    @in_evaluation_mode
    def fails(number, model):
        assert number == 3
        assert not model.network.dropped.training
        raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"):
        fails(3, model=vdm)
    assert vdm.network.dropped.training
    with evaluating("no module"):
        pass


def test_a_model_around_another_leaves_the_modes_of_its_parts():
    vdm = a_model()
    assert vdm.given(torch.tensor([0])).training
    assert vdm.clipped().training
    assert vdm.network.dropped.training
    assert not vdm.network.kept.training
