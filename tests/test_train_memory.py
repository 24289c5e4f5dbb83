"""Training on what is in memory: arrays, tensors, data sets and loaders."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import variational_diffusion as vd
from variational_diffusion.data import in_memory
from variational_diffusion.training import TrainingState, fit

OPTIONS = {
    "steps": 2,
    "progress": False,
    "settings": {"network.width": 16, "network.blocks": 1, "training.batch_size": 16},
}
ROWS = np.random.default_rng(0).normal(size=(120, 2))
PAIRS = TensorDataset(torch.from_numpy(ROWS), torch.arange(120) % 3)


def test_an_array_is_known_again_by_its_values(tmp_path):
    run = vd.train(ROWS, tmp_path / "run", **OPTIONS)
    again = vd.train(ROWS.copy(), tmp_path / "run", **{**OPTIONS, "steps": 3})
    assert again.states()[0] == 3
    with pytest.raises(vd.InputError, match=r"data\.source: 'memory:.* here, 'memory:.* asked"):
        vd.train(ROWS + 1, tmp_path / "run", **OPTIONS)
    figure = vd.evaluate(run, limit=5)
    with pytest.raises(vd.InputError, match=r"were given in memory.*pass them again"):
        vd.evaluate(vd.Run.open(tmp_path / "run"), limit=5)
    assert np.isfinite(figure.bits_per_dim)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_levels_are_found_or_given(dtype):
    values = np.random.default_rng(0).integers(0, 2, (30, 1, 5, 6)).astype(dtype)
    found = {np.uint8: 256, np.int64: 2, bool: 2}[dtype]
    assert in_memory(values).levels == found
    assert in_memory(torch.from_numpy(values)).levels == found
    assert in_memory(values, levels=7).levels == 7


def test_a_shuffled_loader_gives_the_same_splits_and_uses_up_no_seed():
    state = torch.get_rng_state()
    one, two = (in_memory(DataLoader(PAIRS, batch_size=32, shuffle=True)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    other = in_memory(DataLoader(PAIRS, batch_size=7, generator=torch.Generator().manual_seed(5)))
    for dataset in (two, other):
        assert dataset.source == one.source
        for name, split in one.splits.items():
            assert np.array_equal(split.read(), dataset.splits[name].read())
    assert np.array_equal(np.sort(one.everything().read(), 0), np.sort(ROWS, 0))


def test_labels_that_are_not_asked_for_are_named(tmp_path, caplog):
    caplog.set_level("INFO", "variational_diffusion")
    vd.train(DataLoader(PAIRS, batch_size=32), tmp_path / "a", **OPTIONS)
    assert "what stands beside the examples is left out" in caplog.text
    run = vd.train(PAIRS, tmp_path / "b", condition="label", **OPTIONS)
    assert run.config.model.condition.options["names"] == ["0", "1", "2"]
    with pytest.raises(vd.InputError, match="nothing stands beside the examples"):
        in_memory(ROWS, condition="label")


def test_a_loader_that_ends_is_begun_again_and_a_generator_cannot_be(generator):
    model = vd.VDM(vd.MLP((2,), width=8), vd.FixedLinear(-10.0, 5.0), vd.Gaussian(), shape=(2,))
    config = vd.TrainingConfig(steps=5, batch_size=60)
    rows = torch.from_numpy(ROWS).float()
    loader = DataLoader(TensorDataset(rows), batch_size=60)
    state = TrainingState.start(model, config)
    assert [record.step for record in fit(state, loader, config)] == [1, 2, 3, 4, 5]
    state = TrainingState.start(model, config)
    with pytest.raises(vd.InputError, match="cannot be begun again"):
        list(fit(state, (rows[:60] for _ in range(2)), config))
    with pytest.raises(vd.InputError, match="this model is unconditional"):
        next(fit(TrainingState.start(model, config), DataLoader(PAIRS, batch_size=60), config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3, "give a name or a path, an array"),
        ([{"x": 1}], "the loader yields dict"),
        (iter([]), "there are no examples"),
        (np.full((9, 2), np.nan), "example 0"),
        (np.array([["a", "b"]] * 9), "holds <U1"),
    ],
)
def test_what_is_no_data_is_one_line(values, message):
    with pytest.raises(vd.InputError, match=message):
        in_memory(values)


def test_training_leaves_the_process_as_it_was(tmp_path, capsys):
    seed, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    vd.train(ROWS, tmp_path / "run", threads=2, **OPTIONS)
    assert torch.equal(seed, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == dtype
    assert capsys.readouterr() == ("", "")


def test_what_is_kept_of_a_run_does_not_depend_on_who_watches(tmp_path):
    told = []
    quiet = vd.train(ROWS, tmp_path / "a", **OPTIONS)
    watched = vd.train(ROWS, tmp_path / "b", **{**OPTIONS, "progress": told.append})
    assert [progress.count for progress in told] == [1, 2, 2]
    assert told[-1].ended
    weights = watched.load("raw").state_dict()
    assert all(torch.equal(weights[k], v) for k, v in quiet.load("raw").state_dict().items())
