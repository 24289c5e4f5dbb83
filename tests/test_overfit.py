"""The overfit check: it passes what learns, and names what does not."""

import json

import pytest
import torch
from torch import nn

from variational_diffusion.cli import run as vdm
from variational_diffusion.config import TrainingConfig
from variational_diffusion.decoders import Discretized, Gaussian
from variational_diffusion.model import VDM
from variational_diffusion.networks import MLP
from variational_diffusion.schedules import Adaptive, FixedLinear
from variational_diffusion.training.overfit import overfit

CHECK = ["train", "digits", "--overfit-check", "--json"]
SLOW = ["--learning-rate", "1e-12", "--set", "training.matrix_learning_rate=1e-12"]


def test_the_digits_pass_in_seconds_and_leave_no_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--set", "network.widths=[24,24]", "--set", "network.dropout=0.0"]
    assert vdm([*CHECK, *small, "--minutes", "0.4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["last"] < 0.55 * found["first"]
    assert found["seconds"] < 24  # it ends when it has passed
    assert found["causes"] == []
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_of_nearly_zero_fails_and_is_named(capsys):
    assert vdm([*CHECK, *SLOW, "--steps", "4"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4
    assert found["last"] == pytest.approx(found["first"], abs=0.1)
    named = "the bound stayed: learning_rate = 1e-12 and matrix_learning_rate = 1e-12"
    assert found["causes"][0].startswith(named)


def test_a_failure_is_told_in_words(capsys):
    assert vdm([*CHECK[:-1], *SLOW, "--steps", "1"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("FAILED: 8 examples, 1 steps")
    assert "perhaps: the bound stayed" in told


def a_model(network: nn.Module, levels: int | None = 17) -> VDM:
    decoder = Gaussian() if levels is None else Discretized(levels=levels)
    return VDM(network, FixedLinear(-7.9, 5.0), decoder, (1, 4, 4))


def images(levels: int = 17) -> torch.Tensor:
    return torch.randint(0, levels, (8, 1, 4, 4), generator=torch.Generator().manual_seed(1))


class Deaf(nn.Module):
    """A network that learns a constant and does not look at z."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(1, 4, 4))

    def forward(self, z, gamma, conditioning=None):
        return self.constant.expand_as(z)


QUICK = TrainingConfig(steps=10, optimizer="adamw")


def test_a_network_that_does_not_look_is_named():
    model = a_model(Deaf())
    model.schedule = Adaptive(-7.9, 5.0)
    found = overfit(model, images(), QUICK)
    assert not found.passed
    assert "does not depend on z" in found.causes[0]
    assert model.schedule.end_points.tolist() == pytest.approx([-7.9, 5.0])  # it keeps the range


@pytest.mark.parametrize(
    ("x", "cause"),
    [
        (torch.full((8, 1, 4, 4), 3), "every value of the examples is 3"),
        (images()[:1].expand(8, -1, -1, -1), "all examples are the same"),
    ],
)
def test_data_that_hold_nothing_are_named(x, cause):
    found = overfit(a_model(MLP((1, 4, 4), levels=17, gamma_min=-7.9, width=32)), x, QUICK)
    assert not found.passed
    assert cause in found.causes[0]


def test_divergence_is_a_failure_with_its_reason():
    class Bad(Deaf):
        def forward(self, z, gamma, conditioning=None):
            return super().forward(z, gamma) / (self.constant != 0).any().logical_not()

    found = overfit(a_model(Bad()), images(), QUICK)
    assert not found.passed
    assert "bits per dimension of 8 of 8 examples are not finite" in found.causes[0]


def test_real_valued_data_are_judged_by_their_diffusion_term():
    """Their bits per dimension have no zero: half of the first would be too little."""
    x = 0.1 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    model = a_model(MLP((1, 4, 4), gamma_min=-7.9, width=64), levels=None)
    found = overfit(model, x, TrainingConfig(steps=200, learning_rate=3e-3))
    assert found.passed
    assert found.first.bits_per_dim < 0.4 * found.first.terms["diffusion"]
    fallen = found.first.bits_per_dim - found.last.bits_per_dim
    assert fallen >= 0.5 * found.first.terms["diffusion"]
