"""Presets: every one can be built and trained for its kind of data, and is chosen by the data."""

import numpy as np
import pytest

from variational_diffusion.config import DataConfig, TrainingConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.data.loader import training_batches
from variational_diffusion.errors import InputError
from variational_diffusion.model import build
from variational_diffusion.presets import PRESETS, configure, default_preset
from variational_diffusion.training import TrainingState, fit

SMALLER = {"paper": {"network.blocks": 1, "network.width": 8}, "gpu": {"network.widths": [8, 8]}}
"""Settings that make a step of the large presets quick."""


@pytest.fixture
def source(tmp_path):
    def write(shape, levels):
        values = np.random.default_rng(0).integers(0, levels, (40, *shape))
        np.save(tmp_path / "data.npy", values.astype(np.uint8 if levels <= 256 else np.uint16))
        return DataConfig(source=str(tmp_path / "data.npy"), levels=levels)

    return write


@pytest.mark.parametrize("levels", [8, 65_536])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_at_8_and_at_65536_levels(preset, levels, source):
    config = source((5,) if preset == "vector" else (8, 8), levels)
    dataset = open_dataset(config)
    settings = {"training.steps": 3, "training.batch_size": 4, **SMALLER.get(preset, {})}
    run = configure(config, dataset, preset=preset, settings=settings)
    state = TrainingState.start(build(run.model), run.training)
    x = next(training_batches(dataset.splits["train"], 4, seed=0))
    before = [p.detach().clone() for p in state.vdm.network.parameters()]
    for record in fit(state, iter(lambda: x, None), run.training):
        assert record.bound.total.isfinite().all()
    moved = zip(before, state.vdm.network.parameters(), strict=True)
    assert any((a != b).any() for a, b in moved)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 8, 8), "tiny"),
        ((3, 16, 9), "tiny"),
        ((1, 28, 28), "small"),
        ((3, 40, 48), "small"),
        ((3, 64, 64), "medium"),
        ((1, 16, 50), "medium"),
        ((7,), "vector"),
        ((4, 20), "vector"),
    ],
)
def test_the_shape_chooses_the_preset(shape, name):
    assert default_preset(shape) == name


def test_settings_lie_over_the_preset(source):
    config = source((8, 8), 16)
    dataset = open_dataset(config)
    settings = {"training.steps": 7, "training.matrix_learning_rate": 0.5, "network.widths": [12]}
    run = configure(config, dataset, settings=settings)
    assert run.training.steps == 7
    assert run.training.matrix_learning_rate == 0.5
    assert run.model.network.options["widths"] == [12]
    assert run.training.optimizer == TrainingConfig(steps=1).optimizer == "muon"
    paper = configure(config, dataset, preset="paper", settings={"training.steps": 7})
    assert paper.training.optimizer == "adamw"
    with pytest.raises(InputError, match=r"preset = 'huge': known are tiny, small, medium, gpu"):
        configure(config, dataset, preset="huge")
