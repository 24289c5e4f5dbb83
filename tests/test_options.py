"""Options of a configuration: their types and ranges, and what they claim, before any work."""

import json
import math
import resource
from contextlib import suppress

import numpy as np
import pytest
import torch

from variational_diffusion import hub
from variational_diffusion.cli import run as vdm
from variational_diffusion.config import Component, ModelConfig, TrainingConfig, validated
from variational_diffusion.errors import InputError
from variational_diffusion.hub import CONFIG
from variational_diffusion.model import VDM, build, check_claim, complete
from variational_diffusion.networks import NETWORKS
from variational_diffusion.run.training import train
from variational_diffusion.schedules import SCHEDULES

IMAGE, VECTOR = (1, 8, 8), (3,)
NAN, INF = math.nan, math.inf


def configured(name="unet", by="adaptive", network=(), schedule=(), decoder=None) -> ModelConfig:
    """Return a network and a schedule by their names, with these options of the parts."""
    return ModelConfig(
        shape=VECTOR if name == "mlp" else IMAGE,
        decoder=Component(name="discretized", options=decoder or {"levels": 17}),
        schedule=Component(name=by, options=dict(schedule)),
        network=Component(name=name, options=dict(network)),
    )


@pytest.mark.parametrize(
    ("network", "option", "value"),
    [
        ("unet", "widths", "abc"),
        ("unet", "widths", []),
        ("unet", "widths", ["a"]),
        ("unet", "widths", [8, True]),
        ("unet", "widths", [8, 1.5]),
        ("unet", "widths", [8, -8]),
        ("unet", "widths", {"a": 8}),
        ("unet", "widths", 8),
        ("unet", "widths", None),
        ("unet", "dropout", 2),
        ("unet", "dropout", 1),
        ("unet", "dropout", -0.1),
        ("unet", "dropout", "0.1"),
        ("unet", "blocks", -1),
        ("unet", "blocks", 0),
        ("unet", "blocks", 10**9),
        ("unet", "blocks", 10**30),
        ("unet", "blocks", 1.5),
        ("unet", "attention", "no"),
        ("unet", "attention", 1),
        ("unet", "levels", 1),
        ("unet", "gamma_min", 1e300),
        ("unet", "gamma_max", [5]),
        ("unet", "conditioning_size", -1),
        ("unet", "conditioning_channels", 10**12),
        ("mlp", "width", 10**9),
        ("mlp", "width", "128"),
        ("mlp", "width", 0),
        ("transformer", "heads", 0),
        ("transformer", "depth", -3),
        ("transformer", "patch", 0),
        ("paper-unet", "groups", 0),
        ("paper-unet", "fourier_exponents", [1000]),
        ("paper-unet", "fourier_exponents", 6),
    ],
)
def test_an_option_of_a_network_that_cannot_be_is_one_line(network, option, value):
    with pytest.raises(InputError, match=rf"^network\.{option}[.\d]* = .*(should|field)") as told:
        complete(configured(network, network={option: value}))
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("schedule", "option", "value"),
    [
        ("adaptive", "bins", 10**9),
        ("adaptive", "bins", 0),
        ("adaptive", "memory", 0.5),
        ("adaptive", "uniform", 0),
        ("adaptive", "uniform", 1.5),
        ("adaptive", "floor", "low"),
        ("adaptive", "learn_end_points", 1),
        ("monotone", "hidden", "x"),
        ("monotone", "hidden", 1),
        ("fixed-linear", "gamma_min", "-13"),
        ("cosine", "gamma_max", 81),
    ],
)
def test_an_option_of_a_schedule_that_cannot_be_is_one_line(schedule, option, value):
    with pytest.raises(InputError, match=rf"^schedule\.{option} = .*should"):
        complete(configured(by=schedule, schedule={option: value}))


@pytest.mark.parametrize("levels", ["17", 1, 2**17, 17.5, True])
def test_an_option_of_a_decoder_that_cannot_be_is_one_line(levels):
    with pytest.raises(InputError, match=r"^decoder\.levels = .*should"):
        complete(configured(decoder={"levels": levels}))


@pytest.mark.parametrize("value", [NAN, INF, -INF, [[NAN]], {"a": INF}])
@pytest.mark.parametrize("part", ["network", "schedule", "decoder"])
def test_no_number_of_a_part_is_infinite_or_none(part, value):
    with pytest.raises(InputError, match=rf"^{part}\.levels = .*finite numbers|{part}.levels: "):
        complete(configured(**{part: {"levels": value}}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("betas", [2, 3]),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
        ("betas", [-0.1, 0.9]),
        ("betas", "x"),
        ("betas", [0.9, NAN]),
        ("learning_rate", INF),
        ("learning_rate", NAN),
        ("learning_rate", 0),
        ("weight_decay", -1),
        ("minutes", NAN),
        ("clip_norm", INF),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("ema_decay", 1),
        ("optimizer", "sgd"),
    ],
)
def test_a_setting_of_training_that_cannot_be_is_one_line(field, value):
    budget = {} if field == "minutes" else {"steps": 3}
    with pytest.raises(InputError, match=rf"^{field}[.\d]* = .*(should|field)"):
        validated(TrainingConfig, {**budget, field: value})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_defaults_of_every_part_are_allowed(network, schedule):
    made = complete(configured(network, schedule))
    again = ModelConfig.model_validate(json.loads(made.model_dump_json()))
    assert complete(again) == again  # lists of JSON in the place of tuples


@pytest.mark.parametrize(
    "setting",
    [
        "network.widths=abc",
        "network.dropout=2",
        "network.blocks=-1",
        "network.dropout=NaN",
        "schedule.bins=1e3",
        "training.betas=[2,3]",
        "training.learning_rate=Infinity",
    ],
)
def test_the_command_says_so_before_it_makes_a_run(setting, tmp_path, capsys):
    words = ["train", "digits", "--run", str(tmp_path / "run"), "--steps", "1", "--set", setting]
    assert vdm(words) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_constructors_without_annotations_take_what_is_json(monkeypatch):
    class Plain(SCHEDULES["fixed-linear"]):
        def __init__(self, gamma_min=-10.0, bend="none", **others):
            super().__init__(gamma_min)

    monkeypatch.setitem(SCHEDULES, "plain", Plain)
    made = complete(configured(by="plain", schedule={"bend": ["much", 3]}))
    assert made.schedule.options["bend"] == ["much", 3]
    with pytest.raises(InputError, match=r"schedule\.bend = nan"):
        complete(configured(by="plain", schedule={"bend": NAN}))


# what a configuration claims


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as earlier versions stored it, without a digest of its configuration."""
    path = tmp_path_factory.mktemp("hub") / "model"
    network = {"widths": [8, 8], "levels": 17}
    build(configured(network=network)).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "claim",
    [
        {"widths": [3000]},
        {"widths": [65_536, 65_532, 65_536]},
        {"widths": [8, 8], "blocks": 60},
        {"widths": [8, 8], "conditioning_size": 2**24},
        {"widths": [8, 12]},
        {"widths": [8]},
    ],
)
def test_what_the_weights_do_not_hold_takes_no_memory(claim, folder):
    held = {k: tuple(v.shape) for k, v in VDM.from_pretrained(folder).state_dict().items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"network of [\d,]+ parameters and the weights have"):
        check_claim(configured(network={"levels": 17, **claim}), held)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3  # kilobytes


@pytest.mark.parametrize("shape", [(2**40,), (2**62, 2)])
def test_a_shape_without_end_is_refused(shape):
    config = configured("mlp").model_copy(update={"shape": shape})
    with pytest.raises(InputError, match=r"too large to be built|parameters and the weights have"):
        check_claim(config, {"network.dense_in.weight": (8, 3)})


def test_a_flipped_bit_in_a_stored_configuration_is_found(folder):
    path = folder / CONFIG
    content = path.read_bytes()
    expected = VDM.from_pretrained(folder).config
    bits = np.random.default_rng(0).choice(8 * len(content), 300, replace=False)
    try:
        for bit in bits.tolist():
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with suppress(InputError):  # or else it was in what a configuration does not say
                assert VDM.from_pretrained(folder).config == expected
    finally:
        path.write_bytes(content)


def test_configuration_and_weights_of_two_models_do_not_open(folder, tmp_path):
    build(configured(network={"widths": [8, 8], "levels": 17}), seed=1).save_pretrained(
        tmp_path / "same"
    )
    changed = configured(network={"widths": [8, 8], "levels": 17, "gamma_min": -12.0})
    build(changed).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / CONFIG).replace(tmp_path / "same" / CONFIG)
    with pytest.raises(InputError, match="belongs to another model"):
        VDM.from_pretrained(tmp_path / "same")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_folder_appears_whole_or_not_at_all(error, folder, tmp_path, monkeypatch):
    """Interrupted after the configuration, in the weights."""
    model = VDM.from_pretrained(folder)

    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, "write_tensors", refused)
    with pytest.raises((KeyboardInterrupt, InputError)):
        model.save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    model.save_pretrained(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_options_of_ones_own_network_are_its_own(tmp_path):
    class Named(torch.nn.Module):
        def __init__(self, shape, style="plain"):
            super().__init__()
            self.dense = torch.nn.Linear(*shape, *shape)

        def forward(self, z, gamma, conditioning=None):
            return self.dense(z)

    x = np.random.default_rng(0).normal(size=(60, 2))
    small = {"training.batch_size": 8}
    asked = {"network": Named, "steps": 2, "progress": False}
    with pytest.raises(InputError, match=r"network.style = nan: .*finite"):
        train(x, tmp_path / "run", settings={**small, "network.style": NAN}, **asked)
    run = train(x, tmp_path / "run", settings={**small, "network.style": "bold"}, **asked)
    assert run.config.model.network.options["style"] == "bold"
