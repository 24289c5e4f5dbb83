"""Conditions: their encodings, the model given one, and training with them."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from known_answers import ExactDenoiser, exact_vdm
from variational_diffusion.cli import run as vdm_command
from variational_diffusion.conditions import Arrays, Labels, parted
from variational_diffusion.config import DataConfig, TrainingConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.decoders import Gaussian
from variational_diffusion.errors import InputError
from variational_diffusion.images import pictures
from variational_diffusion.likelihood import ContinuousBound, ODELikelihood, evaluate, summarize
from variational_diffusion.model import VDM, build
from variational_diffusion.networks import MLP, NETWORKS
from variational_diffusion.presets import configure
from variational_diffusion.run.directory import Run
from variational_diffusion.schedules import FixedLinear
from variational_diffusion.training import Engine, TrainingState, fit

MEANS = torch.tensor([-0.4, 0.8], dtype=torch.float64)
STD = 0.5


class ExactOfClasses(nn.Module):
    """The exact denoiser of N(mean of the class, std²); of N(0, std²) without a class."""

    def forward(self, z, gamma, conditioning=None):
        if conditioning is None:
            conditioning = z.new_zeros(len(z), len(MEANS))
        mean = (conditioning @ MEANS.to(z)).reshape(-1, *(1,) * (z.ndim - 1))
        return ExactDenoiser(mean, STD, "velocity")(z, gamma)


def of_classes(dimensions: int = 3) -> VDM:
    labels = Labels(["low", "High"], [0.25, 0.75])
    schedule = FixedLinear(-6.0, 4.0)
    return VDM(ExactOfClasses(), schedule, Gaussian(), (dimensions,), condition=labels).double()


def test_labels_are_one_hot_and_known_by_name():
    labels = Labels(["b", "A", "c"], [0.2, 0.3, 0.5])
    assert torch.equal(labels.encode(labels.values(["c", "a", "b"])), torch.eye(3)[[2, 1, 0]])
    with pytest.raises(InputError, match="label = 'shirt': known are b, A, c"):
        labels.values(["shirt"])
    with pytest.raises(InputError, match="the model knows the numbers 0 to 2"):
        labels.encode(torch.tensor([0, 3]))
    with pytest.raises(InputError, match="each name once"):
        Labels(["a", "a"], [0.5, 0.5])
    # 10,000 draws: five standard deviations, a false alarm in two million
    counts = labels.draw(10_000, torch.Generator().manual_seed(0)).bincount() / 10_000
    for count, share in zip(counts.tolist(), [0.2, 0.3, 0.5], strict=True):
        assert abs(count - share) < 5 * math.sqrt(share * (1 - share) / 10_000)


def test_arrays_are_standardised_with_a_one_beside_them():
    vectors = Arrays([2], [1.0, -2.0], [2.0, 0.5])
    found = vectors.encode(torch.tensor([[3, -2], [1, -1]]))
    assert torch.equal(found, torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 1.0]]))
    images = Arrays([1, 2, 2], [4.0], [2.0]).encode(torch.full((3, 1, 2, 2), 6))
    assert torch.equal(images, torch.ones(3, 2, 2, 2))
    with pytest.raises(InputError, match=r"condition has shape \(3,\): the model takes \(2,\)"):
        vectors.encode(torch.zeros(1, 3))


def test_the_model_given_a_class_is_the_model_of_the_class(generator):
    """Bounds, their ODE and steps are those of the exact model of N(mean of the class, std²)."""
    vdm = of_classes()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    draws = vdm.draw(5, generator)
    for label, mean in enumerate(MEANS.tolist()):
        alone, given = exact_vdm(mean=mean, std=STD, dimensions=3), vdm.given(torch.tensor([label]))
        found, expected = given.vlb(x, draws=draws), alone.vlb(x, draws=draws)
        torch.testing.assert_close(found.total, expected.total, rtol=0, atol=1e-12)
        flows = [ODELikelihood(probes=None)(model, x).total for model in (given, alone)]
        torch.testing.assert_close(*flows, rtol=0, atol=1e-9)
        samples = [
            model.sample(4, steps=3, generator=torch.Generator().manual_seed(1))
            for model in (given, alone)
        ]
        torch.testing.assert_close(*samples, rtol=0, atol=1e-12)
    free = exact_vdm(mean=0.0, std=STD, dimensions=3).vlb(x, draws=draws).total
    torch.testing.assert_close(vdm.vlb(x, draws=draws).total, free, rtol=0, atol=1e-12)
    assert vdm.given(None) is vdm


def test_every_row_has_its_own_condition(generator):
    vdm = of_classes()
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 1, 0])
    draws = vdm.draw(4, generator)
    together = vdm.given(label).vlb(x, draws=draws).total
    for row in range(4):
        one = draws.rows(slice(row, row + 1))
        alone = vdm.given(label[row : row + 1]).vlb(x[row : row + 1], draws=one).total
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)


def test_the_conditional_bound_is_lower_by_the_information_in_the_class():
    """By the entropy of N(mean, std²) against −log p(x) of N(0, std²): closed forms."""
    vdm = of_classes()
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(4000) % 2
    noise = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    x = MEANS[label][:, None] + STD * noise
    pairs = [(x, label)]
    given, free = (
        next(
            evaluate(vdm, batches, ContinuousBound(4), generator=torch.Generator().manual_seed(1))
        ).total
        for batches in (pairs, [x])
    )
    difference = free - given
    # E[log N(x; mean of the class) − log N(x; 0)] = mean²/(2 std²), an entry
    expected = 3 * float(MEANS.square().mean()) / (2 * STD**2)
    # what the end points cost differs by less than a hundredth; five standard errors besides
    assert float(difference.mean()) == pytest.approx(
        expected, abs=0.01 + 5 * float(difference.std()) / math.sqrt(4000)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_look_at_the_condition_and_take_none_for_zeros(name, generator):
    """An image to condition on goes in as channels, or as a vector where there are none."""
    shape, image = (1, 6, 6), torch.randn(2, 2, 6, 6, generator=generator)
    option = {"mlp": {"conditioning_size": 72}}.get(name, {"conditioning_channels": 2})
    if name == "paper-unet":
        dataset = open_dataset(DataConfig(source="digits", condition="coarse-2"))
        with pytest.raises(InputError, match="'paper-unet' takes no condition but one number"):
            configure(DataConfig(source="digits"), dataset, network=name)
        return
    torch.manual_seed(0)
    network = NETWORKS[name](shape, **option).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        z, gamma = torch.randn(2, *shape, generator=generator), torch.tensor([-3.0, 1.0])
        given, none = network(z, gamma, image), network(z, gamma)
        assert torch.equal(none, network(z, gamma, torch.zeros_like(image)))
        assert (given - none).abs().amin((1, 2, 3)).shape == (2,)
        assert bool(((given - none).abs().amax((1, 2, 3)) > 1e-3).all())


class Recorder(nn.Module):
    """A network that keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, z, gamma, conditioning=None):
        self.seen.append(conditioning.detach().clone())
        return self.scale * z


def recorded(rate: float, parts: int = 1, steps: int = 25) -> torch.Tensor:
    """What a network is given in training, of which every condition is one when it is there."""
    vdm = VDM(Recorder(), FixedLinear(-6.0, 4.0), Gaussian(), (2,), condition=Labels(["a"], [1.0]))
    config = TrainingConfig(steps=steps, batch_size=64, condition_dropout=rate, posthoc_ema=False)
    batch = torch.zeros(64, 2), torch.zeros(64, dtype=torch.int64)
    state = TrainingState.start(vdm, config)
    list(fit(state, [batch] * steps, config, engine=Engine(parts=parts)))
    return torch.cat(vdm.network.seen)[:, 0]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_conditions_are_dropped_at_the_given_rate(rate):
    """1,600 draws, two-sided at five standard deviations: a false alarm in two million."""
    given = recorded(rate)
    assert set(given.unique().tolist()) <= {0.0, 1.0}
    assert abs(1 - float(given.mean()) - rate) <= 5 * math.sqrt(rate * (1 - rate) / len(given))


def test_which_are_dropped_depends_on_the_step_and_not_on_the_parts():
    given = recorded(0.5, steps=4)
    assert torch.equal(given, recorded(0.5, parts=4, steps=4))
    steps = given.reshape(4, 64)
    assert not torch.equal(steps[0], steps[1])


def digits_run(path, condition="label", steps=30, **settings):
    """The configuration of a small run on the digits, and its data."""
    data = DataConfig(source="digits", condition=condition)
    dataset = open_dataset(data)
    settings = {
        "network.widths": [8, 8],
        "network.dropout": 0.1,
        "training.steps": steps,
        "training.batch_size": 16,
        "training.warmup_steps": 2,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return configure(data, dataset, settings=settings), dataset


def test_training_goes_on_bit_for_bit(tmp_path):
    config, dataset = digits_run(tmp_path, steps=6)

    def trained(state, stop=None):
        batches = training_batches(dataset, 16, config.training.seed, start=state.step)
        for record in fit(state, batches, config.training):
            if record.step == stop:
                break
        return state

    whole = trained(TrainingState.start(build(config.model), config.training))
    run = Run.start(tmp_path / "run", config)
    run.save(trained(TrainingState.start(build(config.model), config.training), stop=3))
    resumed = trained(Run.open(run.path).resume().state)
    assert resumed.step == whole.step == 6
    for name, value in whole.vdm.state_dict().items():
        assert torch.equal(value, resumed.vdm.state_dict()[name]), name


def test_a_model_learns_what_the_class_says():
    """Four values, all near −1 or all near 1: the class is worth a bit, a quarter of each value.

    The other class is many times further away than that.
    """
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (512,), generator=generator)
    x = (2.0 * label - 1)[:, None] + 0.5 * torch.randn(512, 4, generator=generator)
    torch.manual_seed(0)
    network = MLP((4,), gamma_min=-6.0, gamma_max=4.0, width=32, blocks=1, conditioning_size=2)
    labels = Labels(["low", "high"], [0.5, 0.5])
    vdm = VDM(network, FixedLinear(-6.0, 4.0), Gaussian(), (4,), condition=labels)
    config = TrainingConfig(
        steps=200, optimizer="adamw", warmup_steps=5, ema_decay=0.9, posthoc_ema=False
    )
    state = TrainingState.start(vdm, config)
    parts = [slice(first, first + 64) for first in range(0, 512, 64)]
    list(fit(state, ((x[rows], label[rows]) for _ in range(25) for rows in parts), config))
    of_class, of_none, of_other = (
        summarize(
            evaluate(
                state.average.module,
                [batch],
                ContinuousBound(32),
                generator=torch.Generator().manual_seed(1),
            ),
            dimensions=4,
        ).bits_per_dim
        for batch in ((x, label), x, (x, 1 - label))
    )
    assert of_class < of_none - 0.1
    assert of_none < of_other - 1


def test_unconditional_models_take_no_condition():
    with pytest.raises(InputError, match="this model is unconditional; train one with --condition"):
        exact_vdm().given(torch.tensor([0]))
    assert parted(torch.zeros(1))[1] is None


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run of a few steps on the digits with their labels; loud weights heed them."""
    path = trained_by_command(tmp_path_factory.mktemp("labelled") / "run", "label")
    vdm, generator = Run.open(path).load(), torch.Generator().manual_seed(0)
    for parameter in vdm.network.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    Run.open(path).save_weights("ema-loud", vdm, {})
    return path


def trained_by_command(path, condition, *more):
    settings = ["network.widths=[8,8]", "training.warmup_steps=2", "training.batch_size=16"]
    words = [word for setting in settings for word in ("--set", setting)]
    arguments = ["train", "digits", "--condition", condition, "--run", str(path), "--steps", "12"]
    assert vdm_command([*arguments, *words, *more, "--threads", "1", "--json"]) == 0
    return str(path)


def printed(capsys, *arguments):
    capsys.readouterr()
    assert vdm_command([*arguments, "--threads", "1"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_says_whether_the_condition_was_given(labelled, capsys):
    evaluated = ["evaluate", labelled, "--limit", "8", "--json"]
    own, none = (printed(capsys, *evaluated, "--condition", c) for c in ("own", "none"))
    assert (own["condition"], none["condition"]) == ("label", None)
    assert own["bits_per_dim"] != none["bits_per_dim"]


def test_classify_counts_and_writes(labelled, capsys, tmp_path):
    table = tmp_path / "classes.csv"
    arguments = ["classify", labelled, "--limit", "12", "--draws", "1", "--json"]
    found = printed(capsys, *arguments, "--table", str(table))
    counts = np.array(found["confusion"])
    assert counts.sum() == found["examples"] == 12
    assert found["accuracy"] == pytest.approx(counts.trace() / 12)
    low, high = found["interval"]
    assert 0 <= low <= found["accuracy"] <= high <= 1
    assert high - low > 0.2  # of 12 examples, even where all or none are right
    lines = table.read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    assert header[:4] == ["example", "predicted", "probability", "label"]
    for line in lines[1:]:
        row = dict(zip(header, line.split(","), strict=True))
        bits = {name: float(row[f"bits_{name}"]) for name in "0123456789"}
        assert bits[row["predicted"]] < min(bits.values()) + 0.2
    unlabelled = printed(capsys, *arguments, "--condition", "none")
    assert unlabelled["predicted"] == found["predicted"]
    assert "accuracy" not in unlabelled


def test_samples_have_the_label_that_was_asked_for(labelled, capsys, tmp_path):
    arguments = ["sample", labelled, "--n", "6", "--steps", "2", "--threads", "1"]
    arguments += ["--weights", "ema-loud"]

    def drawn(name, *more):
        assert vdm_command([*arguments, "--out", str(tmp_path / name), *more]) == 0
        return np.load(tmp_path / name)

    three = drawn("three.npy", "--label", "3")
    turns = drawn("turns.npy", "--label", "3", "--label", "5")
    assert np.array_equal(three[::2], turns[::2])
    assert not np.array_equal(three[1::2], turns[1::2])
    assert np.array_equal(three, drawn("one.npy", "--label", "3", "--guidance", "1"))
    assert not np.array_equal(three, drawn("two.npy", "--label", "3", "--guidance", "3"))
    interval = ["--guidance-interval", "50", "60"]
    assert np.array_equal(three, drawn("far.npy", "--label", "3", "--guidance", "3", *interval))
    assert np.array_equal(
        drawn("none.npy", "--condition", "none"),
        drawn("zero.npy", "--label", "3", "--guidance", "0"),
    )
    sheet = ["--label", "3", "--out", str(tmp_path / "sheet.png")]
    assert vdm_command([*arguments, *sheet]) == 0
    with Image.open(tmp_path / "sheet.png") as image:
        expected = pictures.sheet(three, 17, captions=["3"] * 6)
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    drawn("own.npy")
    rows = (tmp_path / "own.labels.csv").read_text(encoding="utf-8").split()[1:]
    assert len(rows) == 6
    capsys.readouterr()


def test_a_degradation_is_trained_evaluated_and_sampled(tmp_path, capsys):
    path = trained_by_command(tmp_path / "run", "hidden-right")
    found = printed(capsys, "evaluate", path, "--limit", "4", "--json")
    assert found["condition"] == "hidden-right"
    conditions = np.zeros((1, 2, 8, 8), np.float32)
    np.save(tmp_path / "conditions.npy", conditions)
    arguments = ["sample", path, "--n", "3", "--steps", "2", "--threads", "1", "--out"]
    assert vdm_command([*arguments, str(tmp_path / "own.npy")]) == 0
    more = ["--conditions", str(tmp_path / "conditions.npy"), "--guidance", "2"]
    assert vdm_command([*arguments, str(tmp_path / "given.npy"), *more]) == 0
    capsys.readouterr()
    np.save(tmp_path / "wrong.npy", conditions[:, :1])
    more[1] = str(tmp_path / "wrong.npy")
    assert vdm_command([*arguments, str(tmp_path / "x.npy"), *more]) == 2
    assert "the model takes one or more of shape (2, 8, 8)" in capsys.readouterr().err


def test_mistakes_are_one_line(labelled, tmp_path, capsys):
    plain = tmp_path / "plain"
    settings = ["--set", "network.widths=[4]", "--steps", "1", "--threads", "1", "--json"]
    assert vdm_command(["train", "digits", "--run", str(plain), *settings]) == 0
    np.save(tmp_path / "a.npy", np.zeros((9, 8, 8), np.uint8))
    always = trained_by_command(
        tmp_path / "always", "label", "--set", "training.condition_dropout=0"
    )
    for arguments, message in [
        (["sample", labelled, "--label", "shirt"], "label = 'shirt': known are 0, 1, 2, 3"),
        (["sample", str(plain), "--guidance", "2"], "guidance: the model in .* is unconditional"),
        (["sample", str(plain), "--label", "3"], "label: the model in .* is unconditional"),
        (
            ["sample", labelled, "--condition", "none", "--guidance", "2"],
            "condition = 'none' leaves nothing for guidance",
        ),
        (
            ["sample", labelled, "--guidance", "2", "--guidance-interval", "2", "1"],
            "the lower γ comes first",
        ),
        (["sample", labelled, "--conditions", "a.npy"], "this model takes labels"),
        (["sample", always, "--guidance", "2"], "was trained with condition_dropout = 0"),
        (["evaluate", always, "--condition", "none"], "was trained with condition_dropout = 0"),
        (["classify", str(plain)], "this model is not conditioned on labels"),
        (
            ["evaluate", labelled, str(tmp_path / "a.npy"), "--split", "train"],
            "has no labels; .*; or do without, with --condition none",
        ),
        (
            ["train", "digits", "--condition", "label", "--network", "paper-unet", "--run", "x"],
            "'paper-unet' takes no condition but one number",
        ),
    ]:
        capsys.readouterr()
        assert vdm_command([*arguments, "--threads", "1"]) == 2, arguments
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(message, error), error
