"""What a command does, Python does: one seed, one figure."""

import json
import logging

import numpy as np
import pytest
import torch

import variational_diffusion as vd
from commands import output, train_digits
from variational_diffusion.cli import run as vdm
from variational_diffusion.run import learned_schedule


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("api"))


def printed(capsys, *arguments):
    """Return what a command prints with --json."""
    return json.loads(output(capsys, [*map(str, arguments), "--json"]).out)


def same(values, expected):
    """Compare with what went through JSON: figures to the last digit."""
    assert json.loads(json.dumps(values)) == expected


ESTIMATES = {
    "vlb": (["--draws", "3"], {"draws": 3}),
    "discrete": (
        ["--steps", "4", "--grid", "optimal", "--variance", "position"],
        {"steps": 4, "grid": "optimal", "variance": "position"},
    ),
    "ode": (["--tolerance", "1e-4"], {"tolerance": 1e-4}),
    "importance": (["--samples", "2", "--tolerance", "1e-4"], {"samples": 2, "tolerance": 1e-4}),
}


@pytest.mark.parametrize("estimator", ESTIMATES)
def test_a_likelihood_is_that_of_the_command(capsys, path, estimator):
    words, options = ESTIMATES[estimator]
    limited = ["--limit", "6", "--rounds", "2", "--seed", "3", "--estimator", estimator]
    expected = printed(capsys, "evaluate", path, *limited, *words)
    found = vd.evaluate(path, limit=6, rounds=2, seed=3, estimator=estimator, **options)
    same(found.as_json(), expected)
    assert found.bits_per_dim == expected["bits_per_dim"]
    other = vd.evaluate(path, limit=6, rounds=2, seed=4, estimator=estimator, **options)
    assert other.bits_per_dim != found.bits_per_dim
    mean = found.nats_per_example.mean() / (64 * np.log(2))
    assert mean == pytest.approx(found.bits_per_dim, rel=1e-12)


def test_an_estimator_as_a_value_is_that_of_its_name(path):
    run = vd.Run.open(path)
    options = {"limit": 4, "rounds": 2}
    by_name = vd.evaluate(run, estimator="ode", tolerance=1e-4, **options)
    by_value = vd.evaluate(run, estimator=vd.ODELikelihood(tolerance=1e-4), **options)
    assert by_value.bits_per_dim == by_name.bits_per_dim
    chain = vd.DiscreteBound(steps=4, grid="optimal", variance="position")
    by_name = vd.evaluate(
        run, estimator="discrete", steps=4, grid="optimal", variance="position", **options
    )
    assert vd.evaluate(run, estimator=chain, **options).bits_per_dim == by_name.bits_per_dim


def test_a_model_and_an_array_give_the_figure_of_the_run(path):
    run = vd.Run.open(path)
    test = vd.open_dataset("digits").splits["test"].sample(5)
    own = vd.evaluate(run, limit=5, rounds=2)
    model = run.model(device="cpu")
    assert vd.evaluate(model, test.read(), rounds=2).bits_per_dim == own.bits_per_dim
    assert vd.evaluate(run, torch.from_numpy(test.read()), rounds=2).terms == own.terms
    chain = vd.DiscreteBound(steps=4)  # a grid in time needs no run
    assert vd.evaluate(model, test.read(), rounds=2, estimator=chain).estimator == "discrete"
    with pytest.raises(vd.InputError, match="measured errors of the model; give the run"):
        vd.evaluate(model, test.read(), estimator=vd.DiscreteBound(steps=4, grid="optimal"))


def test_a_comparison_is_that_of_the_command(capsys, path):
    expected = printed(capsys, "compare", path, path, "--limit", 6, "--rounds", 2)
    run = vd.Run.open(path)
    found = vd.compare(run, run, limit=6, rounds=2)
    assert json.loads(json.dumps(found.as_json()))["pairs"] == expected["pairs"]
    assert found.difference == 0


@pytest.mark.parametrize("sampler", ["sde-dpmpp-2m", "ancestral"])
def test_samples_are_those_of_the_command(tmp_path, path, sampler):
    file = tmp_path / "samples.npy"
    words = ["--n", "3", "--steps", "4", "--seed", "5", "--sampler", sampler, "--out", str(file)]
    assert vdm(["sample", path, *words]) == 0
    drawn = vd.Run.open(path).sample(3, steps=4, seed=5, sampler=sampler)
    assert np.array_equal(np.load(file), drawn)
    assert not np.array_equal(drawn, vd.Run.open(path).sample(3, steps=4, seed=6, sampler=sampler))


def test_scores_are_those_of_the_command(capsys, path):
    expected = printed(capsys, "score", path, "--split", "test", "--limit", 8, "--draws", 1)
    found = vd.score(path, split="test", limit=8, draws=1)
    same(found.as_json(), expected)
    other = vd.score(path, split="test", limit=8, draws=1, seed=1)
    assert not np.array_equal(other.score, found.score)
    assert found.score.shape == found.p_value.shape == (8,)


def test_a_schedule_is_that_of_the_command(capsys, path):
    expected = printed(capsys, "schedule", path, "--evaluations", 2000)
    found = vd.schedule(path, evaluations=2000)
    same(found.as_json() | {"figures": []}, expected)
    assert vd.schedule(path, evaluations=2000, seed=1).variances != found.variances
    assert found.gamma[0] == pytest.approx(expected["gamma_0"], rel=1e-6)
    assert found.gamma[-1] == pytest.approx(expected["gamma_1"], rel=1e-6)
    assert (np.diff(found.gamma) > 0).all()


def test_what_a_schedule_is_measured_by_is_kept_in_the_run(path, monkeypatch):
    found = vd.schedule(path, evaluations=2000, seed=3)
    monkeypatch.setattr(learned_schedule, "measure_split", None)
    again = vd.schedule(path, evaluations=2000, seed=3)
    assert again.as_json() == found.as_json()
    for other in ({"seed": 4}, {"evaluations": 2200}, {"limit": 100}, {"weights": "raw"}):
        with pytest.raises(TypeError, match="not callable"):
            vd.schedule(path, **{"evaluations": 2000, "seed": 3} | other)


def test_everything_in_twelve_lines(tmp_path):
    (tmp_path / "runs").mkdir()
    first, second = (tmp_path / "runs" / name for name in "ab")
    settings = {"network.widths": [8, 8], "training.batch_size": 8}
    # the twelve lines
    run = vd.train("digits", first, steps=2, settings=settings, progress=False)
    other = vd.train("digits", second, steps=2, seed=1, settings=settings, progress=False)
    likelihood = vd.evaluate(run, limit=4, rounds=2)
    samples = run.sample(2, steps=2)
    scores = vd.score(run, split="test", limit=4, draws=1)
    comparison = vd.compare(run, other, limit=4, rounds=2)
    packed = vd.compress(run, samples, tmp_path / "two.vdmz", steps=2)
    back = vd.decompress(run, tmp_path / "two.vdmz", tmp_path / "back.npy")
    # what they gave
    assert likelihood.bits_per_dim > 0
    assert np.array_equal(np.load(back), samples)
    assert packed.bytes == (tmp_path / "two.vdmz").stat().st_size
    assert len(scores.p_value) == 4
    assert np.isfinite(comparison.difference)


def test_nothing_is_printed_and_nothing_global_changes(capsys, path):
    seed, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    level = logging.getLogger("variational_diffusion").level
    run = vd.Run.open(path)
    vd.evaluate(run, limit=4, rounds=2, threads=2)
    run.sample(1, steps=2, threads=2)
    vd.score(run, split="test", limit=4, draws=1, threads=2)
    assert capsys.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), seed)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
    assert logging.getLogger("variational_diffusion").level == level


def test_progress_is_told_to_who_listens(path):
    told = []
    vd.evaluate(path, limit=4, rounds=2, progress=told.append)
    assert {each.title for each in told} == {"evaluating"}
    assert told[-1].ended


def test_draws_are_those_of_an_estimator_given_as_a_value(path):
    run = vd.Run.open(path)
    bound, options = vd.ContinuousBound(1), {"limit": 4, "rounds": 2}
    assert vd.evaluate(run, estimator=bound, draws=3, **options).summary.evaluations == 6
    pair = vd.compare(run, run, estimator=bound, draws=3, **options)
    assert pair.summaries[0].evaluations == 6
    for wrong in (0, -1):  # zero is a value, and no wish for the default
        with pytest.raises(vd.InputError, match=f"draws = {wrong}: give one or more"):
            vd.evaluate(run, draws=wrong, **options)


def test_a_figure_says_what_it_is_conditioned_on(tmp_path):
    small = {"network.widths": [8, 8], "training.batch_size": 8}
    run = vd.train(
        "digits", tmp_path / "run", steps=2, condition="label", settings=small, progress=False
    )
    test = run.data.splits["test"].sample(4)
    options = {"rounds": 2}
    assert vd.evaluate(run, test, **options).about["condition"] == "label"
    assert vd.evaluate(run, test.read(), **options).about["condition"] is None
    assert vd.evaluate(run, test, condition="none", **options).about["condition"] is None


def test_how_a_model_computes_is_not_asked_for_in_vain(path):
    model, x = vd.Run.open(path).model(), vd.open_dataset("digits").splits["test"].sample(3).read()
    assert vd.evaluate(model, x, rounds=2, threads=1).summary.examples == 3
    for asked in ({"precision": "bfloat16"}, {"device": "cpu"}, {"channels_last": True}):
        with pytest.raises(vd.InputError, match=r"call vdm\.prepare before"):
            vd.evaluate(model, x, **asked)


def test_an_unknown_option_is_named(path):
    with pytest.raises(vd.InputError, match="thread = 1: estimator 'vlb' has no such option"):
        vd.evaluate(path, thread=1)
    with pytest.raises(vd.InputError, match="steps = 5: estimator 'vlb' has no such option"):
        vd.evaluate(path, steps=5)
    with pytest.raises(vd.InputError, match="estimator = 'elbo': known are vlb"):
        vd.evaluate(path, estimator="elbo")
    with pytest.raises(vd.InputError, match="threads = 0"):
        vd.evaluate(path, threads=0)
