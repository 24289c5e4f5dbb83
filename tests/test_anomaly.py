"""Anomaly scores: what they tell that raw likelihood does not, what p-values promise."""

import csv
import json
import os
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from known_answers import diffusion, exact_vdm, prior, reconstruction
from variational_diffusion.anomaly import (
    SCORES,
    Profiles,
    Reference,
    calibration_needed,
    check_reference,
    discoveries,
    false_alarms,
    fewest_discoveries,
    measured,
    own_p_values,
    p_values,
    profiles,
    score,
    statistics,
)
from variational_diffusion.cli import run
from variational_diffusion.compression.baselines import code_length
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.errors import InputError
from variational_diffusion.escaping import printable
from variational_diffusion.images.pictures import sheet, shortened
from variational_diffusion.report.figures import score_figure
from variational_diffusion.run.directory import Run

MEAN, STD, DIMENSIONS = 0.3, 0.5, 64


def gaussian(n, generator, std=STD):
    return MEAN + std * torch.randn(n, DIMENSIONS, dtype=torch.float64, generator=generator)


def of(x, seed=0, draws=2):
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS)
    same = torch.Generator().manual_seed(seed)
    return Profiles.joined(profiles(vdm, x.split(100), draws=draws, generator=same))


def test_the_bands_add_up_to_the_bound(generator):
    """Every example has noise of its own here, so that a standard error over examples is right."""
    found = Profiles.joined(of(gaussian(1, generator), seed) for seed in range(100))
    assert found.bands.shape == (100, 16)
    nats = diffusion(-6.0, 4.0, STD), prior(4.0, MEAN, STD), reconstruction(-6.0)
    terms = found.bands.sum(1), found.prior, found.reconstruction
    for values, known in zip(terms, nats, strict=True):
        # Two-sided at 4.5 standard errors: false alarm 7e-6 for each of three
        error = values.std() / 10
        assert abs(values.mean() - known / np.log(2)) < 4.5 * error
    assert found.bits == pytest.approx(sum(terms))
    first = diffusion(-6.0, -6.0 + 10 / 16, STD) / np.log(2)
    assert found.bands[:, 0].mean() == pytest.approx(first, rel=0.05)
    assert np.isnan(found.classical).all()


def test_examples_share_their_noise(generator):
    """Batches change nothing, nor does the company; another seed does."""
    x = gaussian(150, generator)
    found, again, other = of(x), of(x[120:]), of(x, seed=1)
    assert again.bands == pytest.approx(found.bands[120:])
    assert again.reconstruction == pytest.approx(found.reconstruction[120:])
    assert (np.abs(other.bands[:, 0] / found.bands[:, 0] - 1) > 1e-3).all()


def test_the_statistics_of_known_arrays():
    stripes = torch.tensor([[[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]]], dtype=torch.float64)
    logs = np.log(np.array([0.5, 0.0, 1.0]) + 1e-3)  # deviation, then down and across
    assert statistics(stripes)[0].tolist() == pytest.approx([0.5, 0.5, *logs])
    assert statistics(torch.zeros(2, 5)).shape == (2, 4)
    assert statistics(torch.zeros(2, 3, 4, 4)).shape == (2, 6)


def synthetic(n, rng, *, more=0.0):
    """Return profiles whose bands are a function of their statistics up to 5 %, and cost more."""
    complexity = rng.normal(size=(n, 2))
    logs = np.stack([complexity[:, 0] ** 2, complexity.sum(1)], axis=1)
    noise = 0.05 * rng.normal(size=(n, 2))
    zero = np.zeros(n)
    return Profiles(zero, zero, np.exp(logs + noise + more), rng.normal(size=n), complexity)


def test_what_the_statistics_explain_is_normal_and_what_costs_more_is_not():
    """Bands are a function of the statistics, up to 5 %: 30 % above is far, below is not."""
    rng = np.random.default_rng(0)
    normal = synthetic(500, rng)
    own, above, below = (
        SCORES["combined"](normal, synthetic(500, rng, more=more)) for more in (0.0, 0.3, -0.3)
    )
    assert (above[:, None] > own).mean() > 0.99
    assert (below[:, None] > own).mean() < 0.5
    far = synthetic(500, rng)
    far.statistics[:] += 20
    assert SCORES["combined"](normal, far).min() > own.max()


def test_the_excess_is_in_standard_deviations_of_unseen_examples():
    """Noise of 5 % around a quadratic: 10 % above is two deviations, in the one band it is in."""
    rng = np.random.default_rng(0)
    normal, of = synthetic(4000, rng), synthetic(1, rng)
    exact = np.stack([of.statistics[:, 0] ** 2, of.statistics.sum(1)], axis=1)
    scores = []
    for above in ([0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [-0.1, -0.1]):
        bands = np.exp(exact + np.array(above))
        example = Profiles(of.prior, of.reconstruction, bands, of.classical, of.statistics)
        scores.append(SCORES["combined"](normal, example)[0])
    assert np.array(scores[1:]) - scores[0] == pytest.approx([4, 4, 0], abs=0.4)


def test_data_that_are_too_simple_are_anomalous_and_only_the_raw_bound_likes_them(generator):
    normal = of(gaussian(400, generator))
    own = of(gaussian(200, generator))
    simple = of(gaussian(200, generator, std=0.6 * STD))
    for name in ("bits", "typicality", "profile", "combined"):
        scores = [SCORES[name](normal, x) for x in (own, simple)]
        larger = (scores[1][:, None] > scores[0]).mean()
        assert larger < 0.2 if name == "bits" else larger > 0.8, name


def test_complexity_takes_off_what_a_classical_coder_needs():
    values = np.array([1.0, 2.0, 4.0])
    bands = np.stack([values / 2, values / 2], axis=1)
    found = Profiles(np.zeros(3), np.zeros(3), bands, np.array([3.0, 1.0, 3.5]), np.zeros((3, 1)))
    assert SCORES["complexity"](found, found).tolist() == [-2, 1, 0.5]
    assert SCORES["typicality"](found, found).tolist() == pytest.approx([4 / 3, 1 / 3, 5 / 3])
    assert SCORES["bits"](found, found).tolist() == [1, 2, 4]


def test_the_distance_is_mahalanobis():
    """Along a direction in which the own data vary little, a small step is far."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(5000, 1))
    logs = np.concatenate([common, common + 0.1 * rng.normal(size=(5000, 1))], axis=1)

    def bands(logs):
        zero = np.zeros(len(logs))
        return Profiles(zero, zero, np.exp(logs), zero, logs)

    along, across = SCORES["profile"](bands(logs), bands(np.array([[1.0, 1.0], [1.0, -1.0]])))
    assert along == pytest.approx(1, rel=0.1)
    assert across > 10 * along


def test_a_classical_length_follows_the_image():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 28, 28))
    assert 8 < code_length(noise, 256) < 9
    assert code_length(np.full((1, 28, 28), 7), 256) < 0.6
    assert code_length(np.arange(64).reshape(64) % 3, 3) < 4
    assert 16 < code_length(rng.integers(0, 65_536, (1, 28, 28)), 65_536) < 17


def test_a_p_value_is_a_rank_in_which_ties_count():
    calibration = np.array([1.0, 2.0, 2.0, 5.0])
    scores = np.array([-1.0, 1.0, 2.0, 2.0 + 1e-9, 2.1, 5.0, 6.0])
    assert p_values(calibration, scores) * 5 == pytest.approx([5, 5, 4, 4, 2, 2, 1])
    assert own_p_values(calibration) * 4 == pytest.approx([4, 3, 3, 1])
    assert p_values(-calibration, np.array([-2.0])) * 5 == pytest.approx([4])
    with pytest.raises(InputError, match=r"score = NaN: .* float32"):
        p_values(calibration, np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="score = NaN"):
        p_values(np.array([np.nan]), calibration)


@pytest.mark.parametrize("name", SCORES)
def test_false_alarms_are_as_rare_as_asked(name):
    """200 times: a score is fitted, calibrated and asked about 50 new examples of the same kind.

    Each time the number of false alarms is beta-binomial: its deviation over √200 is the error of
    the mean rate. Two-sided at 4.5 errors: false alarm 7e-6, of 10. A score that is calibrated by
    the examples that it was fitted to is 5 to 60 errors off.
    """
    rng = np.random.default_rng(0)
    new = 50
    rates = {0.01: [], 0.05: []}
    for _ in range(200):
        reference = Reference(synthetic(120, rng), false_alarms=0.01)
        _, p = reference.judged(synthetic(new, rng), name)
        for rate, found in rates.items():
            found.append((p <= rate).mean())
    n = reference.calibrating(name)
    assert n == (120 if name in ("bits", "complexity") else 100)
    for rate, found in rates.items():
        k = int(rate * (n + 1) + 1e-9)
        law = stats.betabinom(new, k, n + 1 - k)
        error = law.std() / new / np.sqrt(200)
        assert abs(np.mean(found) - k / (n + 1)) < 4.5 * error, rate
        assert law.mean() / new <= rate + 1e-12


def test_scores_that_are_equal_up_to_rounding_are_tied():
    """One score in twelve is the rare 3. A batch of another size makes new ones larger by 1e-7.

    p ≤ 0.05 takes a 3 and at most four of them among the 99: 0.76 %. Were they not tied, every new
    3 would be a false alarm: 8 %. Two-sided at 4.5 errors of 200 repetitions: false alarm 7e-6.
    """
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        values = rng.choice([1.0, 2.0, 3.0], p=[0.5, 0.42, 0.08], size=149)
        p = p_values(values[:99], values[99:] * (1 + 1e-7))
        rates.append((p <= 0.05).mean())
    expected = 0.08 * stats.binom(99, 0.08).cdf(4)
    assert abs(np.mean(rates) - expected) < 4.5 * np.std(rates) / np.sqrt(200)


def test_one_calibration_set_has_a_rate_of_its_own():
    """Uniform scores: the rate is 1 less the largest score that is not marked, and is Beta."""
    rng = np.random.default_rng(0)
    grid = (np.arange(2000) + 0.5) / 2000
    for n, rate in ((100, 0.05), (99, 0.01), (250, 0.2)):
        mean, low, high = false_alarms(n, rate, level=0.9)
        rates = np.array([(p_values(rng.random(n), grid) <= rate).mean() for _ in range(1000)])
        within = (rates >= low).mean(), (rates <= high).mean()
        # 95 % each; an error of 0.7 %, two-sided at 4.5 of them: false alarm 7e-6, of 9
        error = stats.beta(mean * (n + 1), (1 - mean) * (n + 1)).std() / np.sqrt(1000)
        assert abs(rates.mean() - mean) < 4.5 * error + 0.5 / 2000
        assert within == pytest.approx((0.95, 0.95), abs=0.031)
    assert false_alarms(50, 0.01) == (0, 0, 0)
    # Only what is above the largest of 99 is marked, whose law is known: P(rate > r) = (1 − r)^99
    ends = 1 - 0.975 ** (1 / 99), 1 - 0.025 ** (1 / 99)
    assert false_alarms(99, 0.01) == pytest.approx((1 / 100, *ends))


@pytest.mark.parametrize("rate", ["0.01", "0.05", "0.001", "0.07", "0.3", "0.29", "0.5", "0.9"])
def test_the_number_that_a_rate_takes(rate):
    exact, n = Fraction(rate), calibration_needed(float(rate))
    assert Fraction(1, n + 1) <= exact
    assert n == 1 or Fraction(1, n) > exact


def test_the_share_of_false_discoveries_is_as_asked():
    """A fifth is anomalous. Marking by p ≤ rate alone has several times the share."""
    rng = np.random.default_rng(0)
    false = {"bh": [], "p": []}
    found = []
    for _ in range(200):
        scores = rng.normal(size=100)
        scores[:20] += 4
        p = p_values(rng.normal(size=500), scores)
        for name, marked in (("bh", discoveries(p, 0.1)), ("p", p <= 0.1)):
            false[name].append(marked[20:].sum() / max(1, marked.sum()))
        found.append(discoveries(p, 0.1)[:20].mean())
    # In the mean 0.1 · 80/100; an error of 0.007, two-sided at 4.5: false alarm 7e-6
    error = np.std(false["bh"]) / np.sqrt(200)
    assert abs(np.mean(false["bh"]) - 0.08) < 4.5 * error < 0.04
    assert np.mean(false["p"]) > 0.2
    assert np.mean(found) > 0.85


def test_the_fewest_discoveries():
    """So many examples at the smallest p-value are marked, and one fewer are not."""
    for examples, n, rate in ((100, 99, 0.1), (1000, 499, 0.05), (10, 999, 0.1)):
        k = fewest_discoveries(examples, n, rate)
        for count in (k - 1, k):
            p = np.ones(examples)
            p[:count] = 1 / (n + 1)
            assert discoveries(p, rate).sum() == (count if count == k else 0)


def test_no_example_judges_itself():
    """Each held-out example is ranked in the rest of its part, by a fit to the other parts."""
    rng = np.random.default_rng(0)
    for n, name in ((150, "combined"), (20, "profile"), (60, "bits")):
        profiles_of = synthetic(n, rng)
        reference = Reference(profiles_of)
        scores, p = reference.own_judged(name)
        size = reference.calibrating(name)
        order = np.random.default_rng(0).permutation(n)
        seen = []
        for first in range(n - size, -size, -size):
            part = order[max(0, first) : max(0, first) + size]
            fit = np.setdiff1d(order, part)
            expected = SCORES[name](profiles_of.rows(fit), profiles_of.rows(part))
            for place, i in enumerate(part[: min(size, size + first)]):
                assert scores[i] == pytest.approx(expected[place])
                assert p[i] == p_values(np.delete(expected, place), expected[[place]])
                seen.append(i)
        assert sorted(seen) == list(range(n))


def test_how_held_out_examples_are_parted():
    rng = np.random.default_rng(0)
    of_two_bands = synthetic(400, rng)
    for n, rate, expected in (
        (400, 0.01, 200),
        (150, 0.01, 100),
        (100, 0.01, 90),  # ten have to fit
        (400, 0.001, 390),
        (300, 0.01, 150),
        (16, 0.01, 6),
    ):
        reference = Reference(of_two_bands.rows(np.arange(n)), rate)
        assert reference.calibrating("combined") == expected
        assert len(reference.calibration_scores("combined")) == expected
        assert reference.calibrating("bits") == n


def gaussian_split(n, generator):
    values = gaussian(n, generator).float().numpy()
    return Split(ArraySource(values, "gaussian"), np.arange(n))


def test_examples_are_scored_with_p_values_in_one_call(generator):
    """Held-out examples among them are measured once, and judged by the others."""
    vdm = exact_vdm(mean=MEAN, std=STD, dimensions=DIMENSIONS)
    whole = gaussian_split(300, generator)
    held_out, new = (
        replace(whole, indices=whole.indices[rows]) for rows in (slice(0, 200), slice(200, None))
    )
    other = Split(ArraySource(5 + whole.read()[:10], "other"), np.arange(10))
    told = []
    found = score(
        vdm,
        {"both": whole, "other": other},
        held_out,
        draws=1,
        progress=lambda *progress: told.append(progress),
    )
    assert [done for done, _, _ in told] == [200, 300, 310]
    assert {total for _, total, _ in told} == {310}
    reference = Reference(Profiles.joined(measured(vdm, held_out, draws=1)))
    of_new = Profiles.joined(measured(vdm, new, draws=1))
    for part, expected in (
        (slice(0, 200), reference.own_judged()),
        (slice(200, 300), reference.judged(of_new)),
    ):
        assert found.scores["combined"][part] == pytest.approx(expected[0])
        assert np.array_equal(found.p_value[part], expected[1])
    assert (found.p_value[300:] == found.smallest_p).all()
    assert found.marked[300:].all()
    assert found.split[299:301].tolist() == ["both", "other"]
    assert found.number[299:301].tolist() == [299, 0]
    assert set(found.order[:10]) == set(range(300, 310))
    rows = np.array([305, 2, 300])
    assert np.array_equal(found.read(rows), np.stack([other[5], whole[2], other[0]]))
    columns = found.columns()
    assert set(columns) >= {"split", "example", "p_value", "marked", "combined", "band_15"}
    assert "complexity" not in columns  # real values have no classical code length
    assert (np.diff(columns["combined"]) <= 0).all()
    alone = score(vdm, new, held_out, "bits", fdr=0.1, draws=1)
    assert np.array_equal(alone.p_value, reference.judged(of_new, "bits")[1])
    assert np.array_equal(alone.marked, discoveries(alone.p_value, 0.1))
    assert len(alone.calibration) == 200
    with pytest.raises(InputError, match="'complexity': real-valued data"):
        score(vdm, new, held_out, "complexity")
    for rates in ({"false_alarms": 0.0}, {"fdr": 1.0}):
        with pytest.raises(InputError, match="give a rate between 0 and 1"):
            score(vdm, new, held_out, **rates)


def test_mistakes_are_named(generator):
    few = of(gaussian(20, generator))
    for name in ("combined", "profile"):
        message = f"reference = 20 .* '{name}' needs 43 or more; type --score bits"
        with pytest.raises(InputError, match=message):
            Reference(few).judged(few, name)
        with pytest.raises(InputError, match=message):
            Reference(few).own_judged(name)
    with pytest.raises(InputError, match=r"reference = 4 .* 'bits' needs 5 or more; train with"):
        Reference(few.rows(np.arange(4))).judged(few, "bits")
    rare = "'combined' needs 137 held-out examples for that, and there are 100; type --false-alarms"
    with pytest.raises(InputError, match=f"false_alarms = 0.01: {rare} 0.016, or train"):
        check_reference("combined", 100, false_alarms=0.01)
    check_reference("combined", 100, false_alarms=0.016)
    check_reference("combined", 137, false_alarms=0.01)
    with pytest.raises(InputError, match="score = 'odd': known are bits"):
        Reference(few).judged(few, "odd")
    with pytest.raises(InputError, match="no classical code length"):
        Reference(few).judged(few, "complexity")
    with pytest.raises(InputError, match="draws = 0"):
        next(profiles(exact_vdm(), [torch.zeros(1, 4, dtype=torch.float64)], draws=0))
    with pytest.raises(InputError, match="no examples"):
        Profiles.joined([])


def test_the_histogram_shows_what_is_far_away():
    own = np.random.default_rng(0).uniform(5, 20, 200)
    near, far = (
        score_figure("combined", own, own[:9]),
        score_figure("combined", own, np.array([9e4])),
    )
    assert near.axes[0].get_xscale() == "linear"
    assert far.axes[0].get_xscale() == "log"
    _, scored = far.axes[0].patches
    values, edges, _ = scored.get_data()
    assert values[-1] == 1  # the share of what is scored: all of it, in the last bin
    assert edges[-1] >= 9e4
    assert score_figure("bits", -own, np.array([9e4])).axes[0].get_xscale() == "linear"
    marked = score_figure("bits", own, own, threshold=7.5)
    (line,) = marked.axes[0].lines
    assert set(line.get_xdata()) == {7.5}
    same = score_figure("bits", own[:1], own[:1])
    assert [patch.get_data()[0].sum() for patch in same.axes[0].patches] == [1, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a run on 400 digits: about 200 to train on, 160 for validation, 40 to test."""
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "digits.npy", load_digits().images[:400].astype(np.uint8))
    path, data = str(folder / "run"), str(folder / "digits.npy")
    shares = ["--levels", "17", "--validation", "0.4", "--test", "0.1"]
    small = ["--steps", "30", "--batch-size", "32", "--set", "network.widths=[8,8]"]
    assert run(["train", data, "--run", path, *shares, *small]) == 0
    return path


def read_table(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_scores_figure_and_sheet(capsys, trained, tmp_path):
    foreign = tmp_path / "boards.npy"
    board = 16 * (np.indices((8, 8)).sum(0) % 2)
    np.save(foreign, np.stack([np.roll(board, k, axis=0) for k in range(40)]).astype(np.uint8))
    files = {name: str(tmp_path / f"a{name}") for name in (".csv", ".png", ".webp")}
    arguments = ["score", trained, str(foreign), "--draws", "1"]
    targets = ["--table", files[".csv"], "--figure", files[".png"], "--sheet", files[".webp"]]
    assert run([*arguments, *targets, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    held_out = len(open_dataset(Run.open(trained).config.data).splits["validation"])
    assert (result["examples"], result["held_out"], result["calibration"]) == (40, held_out, 100)
    assert result["smallest_p"] == pytest.approx(1 / 101)
    assert result["marked"] == result["parts"][0]["marked"] == 40
    assert result["expected"]["mean"] == pytest.approx(1 / 101)
    assert result["expected"]["low"] < 0.01 < result["expected"]["high"] < 0.04
    rows = read_table(files[".csv"])
    assert len(rows) == 40
    assert set(SCORES) < rows[0].keys()
    combined = [float(row["combined"]) for row in rows]
    assert combined == sorted(combined, reverse=True)
    assert int(rows[0]["example"]) == result["most_anomalous"][0]["example"]
    assert {row["p_value"] for row in rows} == {str(1 / 101)}
    assert {row["marked"] for row in rows} == {"True"}
    with Image.open(files[".png"]) as image:
        assert image.size[0] > 300
    with Image.open(files[".webp"]) as image:  # 8 columns of 96 pixels, 4 rows with two lines
        assert image.size == (8 * 98 + 2, 4 * (98 + 28) + 2)
    assert run([*arguments, "--score", "bits", "--fdr", "0.1"]) == 0
    assert "among 40 examples; the most anomalous first" in capsys.readouterr().out
    assert run([*arguments, "--table", files[".csv"]]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_by_default_all_of_the_run_s_data_are_ranked_once(capsys, trained, tmp_path):
    """Also by their name; the examples that calibrate are judged by the others."""
    data = Run.open(trained).config.data
    sizes = {name: len(split) for name, split in open_dataset(data).splits.items()}
    table = str(tmp_path / "all.csv")
    options = ["--draws", "1", "--score", "bits", "--false-alarms", "0.05", "--table", table]
    assert run(["score", trained, data.source, *options]) == 0
    printed = capsys.readouterr().out
    assert f" among {sizes['train']} training examples, " in printed
    assert "train: the model was trained on these examples" in printed
    n = sizes["validation"]
    assert (
        f"against {n} of {n} held-out examples, so the smallest is {1 / (n + 1):.2g}\n" in printed
    )
    rows = read_table(table)
    assert {(row["split"], int(row["example"])) for row in rows} == {
        (name, i) for name, size in sizes.items() for i in range(size)
    }
    assert len(rows) == sum(sizes.values())
    own = {int(row["example"]): row for row in rows if row["split"] == "validation"}
    ranks = sorted(float(row["p_value"]) * n for row in own.values())
    assert ranks == pytest.approx(range(1, n + 1), abs=1.01)  # where two are tied
    assert n // 20 - 1 <= sum(row["marked"] == "True" for row in own.values()) <= n // 20
    test = [row for row in rows if row["split"] == "test"]
    bits = np.array([float(own[i]["bits"]) for i in range(n)])
    for row in test[:20]:
        expected = (1 + (bits >= float(row["bits"]) * (1 - 1e-5)).sum()) / (n + 1)
        assert float(row["p_value"]) == pytest.approx(expected)
    arguments = ["score", trained, "--draws", "1", "--score", "bits", "--json"]
    assert run([*arguments, "--limit", "100"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert sum(part["examples"] for part in parts) == 100
    assert [part["of"] for part in parts] == list(sizes.values())
    assert [part["trained_on"] for part in parts] == [True, False, False]
    assert run([*arguments, "--split", "test", "--limit", "30"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert (part["split"], part["examples"], part["of"]) == ("test", 30, sizes["test"])


def test_a_rate_that_the_held_out_examples_do_not_allow(capsys, trained):
    arguments = ["score", trained, "--split", "test", "--limit", "20", "--draws", "1"]
    assert run([*arguments, "--false-alarms", "0.001"]) == 2
    assert "needs 1037 held-out examples for that, and there are 1" in capsys.readouterr().err
    assert run([*arguments, "--reference", "60"]) == 0
    printed = capsys.readouterr().out
    assert "no example can be marked at 0.01: that takes 137 held-out examples" in printed
    assert "type --false-alarms 0.044 or more" in printed
    assert run([*arguments, "--fdr", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert "--fdr 0.01: 20 examples have to have the smallest p-value" in printed
    assert run([*arguments, "--fdr", "0.01", "--false-alarms", "0.1"]) == 2
    assert "give one of the two" in capsys.readouterr().err


def test_image_files_are_called_by_their_names(capsys, tmp_path, generator):
    folder = tmp_path / "images"
    odd = os.fsdecode(b"b/line\nand \xff.png")
    long = f"b/{'long_' * 20}end.png"
    for name in ("a/1.png", "a/2.png", odd, long, *(f"b/{k}.png" for k in range(156))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = torch.randint(0, 20, (8, 8), generator=generator)
        Image.fromarray((values + 200 * (name == "a/2.png")).numpy().astype(np.uint8)).save(
            folder / name
        )
    path = str(tmp_path / "run")
    small = [
        "--condition",
        "label",
        "--validation",
        "0.3",
        "--batch-size",
        "4",
        "--set",
        "network.widths=[8,8]",
    ]
    assert run(["train", str(folder), "--run", path, "--steps", "40", *small]) == 0
    table = tmp_path / "scores.csv"
    sheet = str(tmp_path / "sheet.png")
    options = ["--draws", "2", "--table", str(table), "--sheet", sheet, "--condition", "none"]
    capsys.readouterr()
    assert run(["score", path, *options, "--false-alarms", "0.2"]) == 0
    rows = read_table(table)
    assert rows[0]["file"] == "a/2.png"
    with Image.open(sheet) as picture:  # the only bright one comes first, 96 pixels high
        bright = np.asarray(picture.convert("L"))[10:90] > 190
    assert bright[:, 10:90].all()
    assert not bright[:, 110:].any()
    assert sorted(row["file"] for row in rows) == sorted(
        printable(str(f.relative_to(folder))) for f in folder.rglob("*.png")
    )
    assert "b/line\\nand \\udcff.png" in {row["file"] for row in rows}
    assert "a/2.png" in capsys.readouterr().out
    for command, option in (("evaluate", "--table"), ("classify", "--table")):
        table = tmp_path / f"{command}.csv"
        assert run([command, path, str(folder), option, str(table), "--limit", "9"]) == 0
        assert list(read_table(table)[0])[:2] == ["example", "file"]


def test_captions_are_shortened_in_the_middle():
    """What is left fits, keeps both ends and is the most that does."""
    text = "photos_2024_0001.png"
    for width in range(1, 25):
        short = shortened(text, width, len)
        assert len(short) == min(width, len(text))
        begin, dots, end = short.partition("…")
        assert text.startswith(begin)
        assert text.endswith(end)
        assert bool(dots) == (width < len(text))
        assert not dots or 0 <= len(end) - len(begin) <= 1
    images = np.zeros((2, 1, 8, 8), dtype=np.uint8)
    plain, one, two = (
        sheet(images, 256, 2, captions=captions)
        for captions in (None, ["a", "b"], ["a", "b\nsecond"])
    )
    assert one.height - plain.height == two.height - one.height == 14
    chinese, escaped, accented, another = (
        np.asarray(sheet(images[:1], 256, 1, 12, captions=[caption]))
        for caption in ("\u65e5é", "\\u65e5é", "é", "ü")
    )
    assert np.array_equal(chinese, escaped)
    assert not np.array_equal(accented, another)
    assert np.array_equal(np.asarray(one)[:-2], np.asarray(two)[: one.height - 2])


def test_samples_come_with_their_likelihood(capsys, trained, tmp_path):
    path = tmp_path / "samples.npy"
    arguments = ["sample", trained, "--n", "6", "--steps", "4", "--out", str(path)]
    table = tmp_path / "bits.csv"
    assert run([*arguments, "--table", str(table)]) == 0
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(1 < float(row["bits_per_dim"]) < 15 for row in rows)
    assert "mean" in capsys.readouterr().out
