"""Run directories: save, load, resume, and what a damaged one says."""

import json
import os

import pytest
import torch

from variational_diffusion.config import DataConfig, RunConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.errors import InputError
from variational_diffusion.model import build
from variational_diffusion.presets import configure
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.tensors import read_tensors, write_tensors
from variational_diffusion.training import TrainingState, fit

DATA = DataConfig(source="digits")


@pytest.fixture(scope="module")
def digits():
    return open_dataset(DATA)


def small_config(digits, **settings: object) -> RunConfig:
    return configure(
        DATA,
        digits,
        settings={
            "network.widths": [8, 8],
            "network.blocks": 1,
            "training.steps": 12,
            "training.batch_size": 8,
            "training.warmup_steps": 2,
            **settings,
        },
    )


def start(config: RunConfig) -> TrainingState:
    return TrainingState.start(build(config.model, seed=config.training.seed), config.training)


def advance(state: TrainingState, config: RunConfig, digits, until: int) -> TrainingState:
    training = config.training
    stream = training_batches(
        digits.splits["train"], training.batch_size, training.seed, start=state.step
    )
    for record in fit(state, stream, training):
        if record.step == until:
            break
    return state


def test_saved_and_loaded_weights_give_the_same_bound(digits, tmp_path):
    config = small_config(digits)
    run = Run.start(tmp_path / "run", config)
    state = advance(start(config), config, digits, 5)
    run.save(state)
    x = digits.splits["test"].__getitems__(list(range(16)))
    for weights, vdm in (("raw", state.vdm), ("ema", state.average.module)):
        loaded = Run.open(tmp_path / "run").load(weights)
        expected = vdm.eval().vlb(x, generator=torch.Generator().manual_seed(3)).total
        got = loaded.vlb(x, generator=torch.Generator().manual_seed(3)).total
        assert torch.equal(got, expected)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(digits, tmp_path):
    config = small_config(digits)
    whole = advance(start(config), config, digits, 12)
    run = Run.start(tmp_path / "run", config)
    run.save(advance(start(config), config, digits, 5))
    found = Run.open(tmp_path / "run").resume()
    assert found is not None
    resumed = found.state
    assert resumed.step == 5
    advance(resumed, config, digits, 12)
    for name, value in whole.vdm.state_dict().items():
        assert torch.equal(value, resumed.vdm.state_dict()[name]), name
    for name, value in whole.average.module.state_dict().items():
        assert torch.equal(value, resumed.average.module.state_dict()[name]), name


def test_nothing_saved_yet_is_said(digits, tmp_path):
    run = Run.start(tmp_path / "run", small_config(digits))
    assert run.resume() is None
    with pytest.raises(InputError, match=r"no weights are saved yet .*vdm train digits --run"):
        run.load()


def test_a_run_of_another_configuration_is_not_touched(digits, tmp_path):
    run = Run.start(tmp_path / "run", small_config(digits))
    run.save(start(run.config))
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = small_config(digits, **{"training.seed": 7})
    with pytest.raises(InputError, match=r"training.seed: 0 here, 7 asked.*another --run"):
        Run.start(tmp_path / "run", other)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    Run.start(tmp_path / "run", small_config(digits))


def test_a_directory_without_a_run_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"no run is there.*vdm train DATA --run"):
        Run.open(tmp_path)


def test_an_unwritable_directory_is_named(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run' *.*cannot be written.*another --run"):
        Run.start(tmp_path / "file" / "run", small_config(digits))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "not tensors"])
@pytest.mark.parametrize(
    "name", ["state/00000001.safetensors", "model.safetensors", "ema.safetensors"]
)
def test_a_damaged_file_is_named(digits, tmp_path, name, damage):
    config = small_config(digits)
    run = Run.start(tmp_path / "run", config)
    run.save(advance(start(config), config, digits, 1))
    path = tmp_path / "run" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-10] ^= 1
    else:
        content = bytearray(b"" if damage == "emptied" else b"not tensors" * 100)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{os.path.basename(name)}' is damaged.*restore it"):
        _ = (
            run.resume()
            if name.startswith("state")
            else run.load("raw" if "model" in name else "ema")
        )


def test_weights_of_another_model_are_refused(digits, tmp_path):
    first, second = (
        Run.start(tmp_path / name, small_config(digits, **{"network.widths": widths}))
        for name, widths in (("a", [8, 8]), ("b", [8, 16]))
    )
    first.save(start(first.config))
    (tmp_path / "b" / "ema.safetensors").write_bytes(
        (tmp_path / "a" / "ema.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match="belong to different models"):
        second.load()


def test_tensors_of_a_newer_format_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(3), "b": torch.tensor(1.5)}, {"step": "4"})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["a"], torch.arange(3))
    assert metadata["step"] == "4"
    content = path.read_bytes().replace(b'"format":"1"', b'"format":"9"')
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"has format 9, this version reads 1"):
        read_tensors(path)


def test_metrics_of_steps_that_will_be_done_again_are_dropped(digits, tmp_path):
    run = Run.start(tmp_path / "run", small_config(digits))
    for step in (10, 20, 30):
        run.log(step=step, loss=1.0 / step)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a line cut short by a crash
    assert [line["step"] for line in run.metrics()] == [10, 20, 30]
    run.forget_metrics_after(20)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
