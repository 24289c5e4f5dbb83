"""What repeats, is constant or has lost digits is found in real values, and said in one line."""

import math
import re

import numpy as np
import pytest

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.reals import LEAST_GAMMA, named, real_values
from variational_diffusion.errors import InputError
from variational_diffusion.presets import configure
from variational_diffusion.schedules import SCHEDULES

RNG = np.random.default_rng(0)
N = RNG.normal(size=(2000, 4))


def look(values):
    return real_values(Split(ArraySource(values, "a"), np.arange(len(values))))


CONTINUOUS = {
    "normal": lambda rng, n: rng.normal(size=(n, 3)),
    "uniform": lambda rng, n: rng.random((n, 3)),
    "exponential": lambda rng, n: rng.exponential(size=(n, 3)),
    "lognormal": lambda rng, n: np.exp(3 * rng.normal(size=(n, 3))),
    "cauchy": lambda rng, n: rng.standard_cauchy((n, 3)),
    "two widths": lambda rng, n: rng.normal(size=(n, 3)) * rng.choice([1, 1e-4], (n, 3)),
    "images": lambda rng, n: rng.normal(size=(n // 100, 1, 20, 20)),
}


@pytest.mark.parametrize("n", [30, 2000, 100_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_values_are_left_alone(name, dtype, n):
    """Some values of float32 are alike by chance: ten times as many are no alarm."""
    if name == "images" and n < 100:
        n = 1000
    found = look(CONTINUOUS[name](np.random.default_rng(n), n).astype(dtype))
    assert found.notes() == []
    assert found.least_gamma == LEAST_GAMMA


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (RNG.integers(0, 256, (50, 3, 8, 8)) / 255, "--levels 256 --range 0 1"),
        ((RNG.integers(0, 256, (50, 3, 8, 8)) / 255 - 0.5) / 0.5, "--levels 256 --range -1 1"),
        (RNG.integers(0, 17, (100, 4)) / 16, "--levels 17 --range 0 1"),
        (RNG.integers(0, 2, (500, 3)), "--levels 2"),
        (2 * RNG.integers(0, 2, (500, 3)) - 1, "--levels 2 --range -1 1"),
        (np.minimum(RNG.poisson(3, (500, 2)), 7), "--levels 8"),
        (RNG.integers(-5, 6, (500, 2)), "--levels 11 --range -5 5"),
        (RNG.integers(1950, 2020, (2000, 2)), "--levels 70 --range 1950 2019"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_stored_as_floats_are_named_and_read_as_levels(values, options, dtype, tmp_path):
    np.save(tmp_path / "a.npy", values.astype(dtype))
    source = str(tmp_path / "a.npy")
    (note,) = open_dataset(DataConfig(source=source)).remarks
    assert note.startswith("repeated values: all are ")
    match = re.search(f"train with ({options})$", note)
    assert match, note
    words = match[1].split()
    value_range = tuple(map(float, words[3:])) or None
    dataset = open_dataset(DataConfig(source=source, levels=int(words[1]), value_range=value_range))
    assert dataset.levels == int(words[1])
    assert dataset.remarks == ()


def test_the_floor_of_levels_is_that_of_discrete_data():
    """γ_0 = −13.3 has noise of a sixth of a step of 256 levels in [−1, 1], scale 1."""
    levels = np.tile((2 * np.arange(256) + 1) / 256 - 1, 20)
    found = look(levels[:, None])
    scale = float(levels.std())
    assert found.least_gamma == pytest.approx(-13.3 - 2 * math.log(scale), abs=1e-3)
    assert look(RNG.integers(0, 2, (500, 1)) * 1.0).least_gamma == pytest.approx(-2.21, abs=0.02)
    assert look((RNG.random((5000, 1)) < 0.001) * 1.0).least_gamma < -2  # one step is 30 scales


CASES = {
    "two decimals": (N.round(2), "repeated values", "as wide as a step, here 0.01: x", None),
    "few of them": (N[:100].round(2), "repeated values", "here 0.01", None),
    "four decimals": (N.round(4), "repeated values", "here 0.0001", None),
    "zeros": (
        np.where(RNG.random(N.shape) < 0.3, 0, N),
        "repeated values",
        r"most often 0\).*apart whether a value is 0$",
        -13.3,
    ),
    "some zeros": (np.where(RNG.random(N.shape) < 0.005, 0, N), "repeated values", "0.00", -13.3),
    "censored": (np.minimum(N, 1.5), "repeated values", "whether a value is 1.5$", -13.3),
    "one of three": (
        np.column_stack([N[:, 0], N[:, 1] > 0, N[:, 2]]),
        "repeated values",
        r"1 of column 1 \(so column 1 of 3; ",
        -13.3,
    ),
    "time": ((1.7e9 + 60 * N).astype(np.float32), "lost digits", "in steps of 128 around", None),
    "offset": ((1e6 + N).astype(np.float32), "lost digits", r"0\.0625 around 1e\+06, 0\.06", None),
    "too late": ((1e6 + N).astype(np.float32).astype(float), "lost digits", "0.0625", None),
    "float64": (1e15 + N, "lost digits", r"0\.125 around 1e\+15", None),
    "half": (N.astype(np.float16), "lost digits", "0.000488", -13.3),
    "copies": (np.concatenate([N, N[:100]]), "copies", "0.048 of the examples", LEAST_GAMMA),
    "constant": (np.column_stack([N, np.full(2000, 0.1)]), "constant", "column 4 of 5", None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_density_is_said_in_one_line(name):
    values, kind, pattern, floor = CASES[name]
    found = look(values)
    (note,) = found.notes()
    assert note.startswith(kind), note
    assert re.search(pattern, note), note
    assert "\n" not in note
    assert len(note) < 350
    if floor is not None:
        assert found.least_gamma == floor
    elif kind != "constant":
        assert LEAST_GAMMA <= found.least_gamma < 0
        # the noise at the floor is a sixth of the smallest step
        step = float(np.min(found.step / found.scale))
        expected = max(LEAST_GAMMA, 2 * math.log(min(step, 2) / 6.04))
        assert found.least_gamma == pytest.approx(expected, abs=0.01)


def test_many_columns_are_one_line_each():
    k = RNG.integers(0, 200, (300, 784)) * 0.37
    k[:, ::3] = 1.5
    notes = look(k).notes()
    assert [note.partition(":")[0] for note in notes] == ["constant values", "repeated values"]
    assert all(len(note) < 350 for note in notes)
    assert "columns 0, 3, 6 and 259 others of 784" in notes[0]


def test_constant_columns_are_refused_in_one_line(tmp_path):
    images = RNG.integers(0, 256, (300, 784)) / 255 * (np.arange(784) > 100)
    for values, remedy in (
        (images, r"--levels 256 --range 0 1"),
        (np.column_stack([N, N[:, :1] * 0]), r"leave constant columns out, as in x\[:, "),
    ):
        np.save(tmp_path / "a.npy", values)
        data = DataConfig(source=str(tmp_path / "a.npy"))
        with pytest.raises(InputError, match=rf"^columns? [^\n]*{remedy}") as caught:
            configure(data, open_dataset(data), settings={"training.steps": 1})
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_runs_of_real_values_start_at_the_floor_or_above(schedule, tmp_path):
    for values, gamma_min, floor in (
        (N, -10.0, LEAST_GAMMA),
        (RNG.integers(0, 2, (500, 2)) * 1.0, -2.2, -2.2),
    ):
        np.save(tmp_path / "a.npy", values)
        data = DataConfig(source=str(tmp_path / "a.npy"))
        run = configure(data, open_dataset(data), schedule=schedule, settings={"training.steps": 1})
        options = run.model.schedule.options
        assert options["gamma_min"] == pytest.approx(gamma_min, abs=0.05)
        if schedule in ("fixed-linear", "cosine"):
            assert "floor" not in options
        else:
            assert options["floor"] == pytest.approx(floor, abs=0.05)
    with pytest.raises(InputError, match=r"gamma_min = -30\.0 and floor = -2\.2.*floor=null"):
        SCHEDULES["adaptive"](-30.0, 5.0, floor=-2.2)


def test_names_of_columns():
    assert named([3], 5, "column") == "column 3 of 5"
    assert named([1, 2, 3, 4], 9, "channel") == "channels 1, 2, 3, 4 of 9"
    assert named(range(5), 9, "entry") == "entries 0, 1, 2 and 2 others of 9"
