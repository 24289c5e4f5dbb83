"""The budget of a run: spent, extended, by steps and by minutes, and a configuration of a file."""

import json

import pytest
import torch

from commands import OPTIONS, TRAIN, output
from variational_diffusion.config import RunConfig
from variational_diffusion.errors import InputError
from variational_diffusion.run.directory import Run
from variational_diffusion.run.training import Save, configuration, train, training_events
from variational_diffusion.training import StepRecord

SMALL = {"training.batch_size": 8, "network.widths": [8], "training.warmup_steps": 2}


def trained(path, data="digits", decay_from=0.5, **options):
    settings = {} if data is None else {"settings": {**SMALL, "training.decay_from": decay_from}}
    return train(data, path, progress=False, precision="float32", **settings, **options)


def assert_same(found, expected):
    for name in ("raw", "ema"):
        weights = found.load(name).state_dict()
        for key, weight in expected.load(name).state_dict().items():
            assert torch.equal(weights[key], weight), (name, key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole") / "run", steps=8)


def test_an_extended_run_is_the_longer_run_bit_for_bit(whole, tmp_path):
    """The rate is constant up to half of the budget, so the two are the same up to there."""
    path = tmp_path / "run"
    assert trained(path, steps=4).states() == [4, 2]
    text = (path / "config.json").read_text(encoding="utf-8")
    run = trained(path, steps=8)
    assert run.states() == [8, 4]
    assert_same(run, whole)
    assert RunConfig.from_json((path / "config.json").read_text("utf-8")) == whole.config
    assert text != (path / "config.json").read_text(encoding="utf-8")
    steps = [line["step"] for line in run.metrics() if "train" in line]
    assert steps == sorted(set(steps))


def test_an_extension_that_is_cut_short_loses_nothing(whole, tmp_path):
    path = tmp_path / "run"
    trained(path, steps=4)
    settings = {**SMALL, "training.decay_from": 0.5}
    events = training_events("digits", path, steps=8, settings=settings, precision="float32")
    for event in events:
        if isinstance(event, StepRecord) and event.step == 3:
            break
    events.close()
    assert Run.open(path).states()[0] == 3
    assert_same(trained(path, data=None), whole)


def test_a_budget_that_is_spent_changes_nothing(whole, tmp_path, caplog):
    caplog.set_level("INFO", "variational_diffusion")
    before = (whole.path / "model.safetensors").read_bytes()
    again = trained(whole.path, data=None, steps=5)
    assert "has done 8 steps, which is the budget" in caplog.text
    assert again.config.budget == {"steps": 8}
    assert (whole.path / "model.safetensors").read_bytes() == before


def test_a_run_goes_on_by_another_unit(tmp_path):
    state = trained(tmp_path / "run", steps=2).resume().state
    minutes = (state.seconds + 0.2) / 60
    run = trained(tmp_path / "run", data=None, minutes=minutes)
    assert run.config.budget == {"minutes": minutes}
    again = run.resume().state
    assert again.step >= 2
    assert again.seconds >= 60 * minutes


def test_without_a_fall_of_the_rate_nothing_is_done_again(tmp_path):
    trained(tmp_path / "run", steps=4, decay_from=1.0)
    events = training_events(
        "digits",
        tmp_path / "run",
        steps=5,
        settings={**SMALL, "training.decay_from": 1.0},
        precision="float32",
    )
    assert [event.step for event in events if isinstance(event, StepRecord)] == [5]


def test_the_state_before_the_fall_is_saved_as_it_comes(tmp_path):
    options = {"steps": 5, "settings": SMALL, "precision": "float32"}
    saves = [e.step for e in training_events("digits", tmp_path, **options) if isinstance(e, Save)]
    assert saves == [3, 5]


def test_the_command_goes_on_with_a_run_alone(capsys, tmp_path):
    path = str(tmp_path / "run")
    output(capsys, ["train", "digits", "--run", path, *TRAIN])
    assert json.loads(output(capsys, ["train", "--run", path, "--json"]).out)["steps"] == 3
    more = ["train", "--run", path, "--steps", "5", "--json"]
    assert json.loads(output(capsys, more).out)["steps"] == 5
    told = output(capsys, ["train", "--run", path, "--preset", "tiny"], code=2).err
    assert "preset = 'tiny': the configuration says what it is" in told
    told = output(capsys, ["train", "--run", str(tmp_path / "no")], code=2).err
    assert "there is no run to go on with" in told


def test_a_dry_run_prints_the_configuration_and_writes_nothing(capsys, tmp_path):
    path = tmp_path / "run"
    printed = output(capsys, ["train", "digits", "--run", str(path), *TRAIN, "--dry-run"]).out
    config = RunConfig.from_json(printed)
    assert config == configuration("digits", path, **OPTIONS).config
    assert not path.exists()
    run = train("digits", path, progress=False, **OPTIONS)
    assert run.config == config.begun()
    file = tmp_path / "other.json"
    file.write_text(printed, encoding="utf-8")
    arguments = ["train", "--config", str(file), "--steps", "4", "--dry-run"]
    other = RunConfig.from_json(output(capsys, arguments).out)
    assert other == config.with_budget(4, None)


def test_a_configuration_of_toml(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        """
        [data]
        source = "digits"
        levels = 17
        [model]
        shape = [1, 8, 8]
        decoder = {name = "discretized", options = {levels = 17}}
        schedule = {name = "cosine"}
        network = {name = "unet", options = {widths = [8]}}
        [training]
        batch_size = 8
        """,
        encoding="utf-8",
    )
    asked = configuration(config=file)
    assert asked.config.budget == {"minutes": 10}
    assert asked.config.model.network.options["widths"] == [8]
    run = train(None, tmp_path / "run", config=file, steps=2, progress=False)
    assert run.states() == [2, 1]
    file.write_text(file.read_text(encoding="utf-8").replace("batch_size = 8", "batch = 8"))
    with pytest.raises(
        InputError, match=r"run\.toml': training\.batch: no such field"
    ):
        configuration(config=file)
    file.write_text("no toml")
    with pytest.raises(InputError, match=r"run\.toml' cannot be read"):
        configuration(config=file)
