"""Anomaly scores: what they are made of, and that they tell what raw likelihood does not."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from known_answers import diffusion, exact_vdm, prior, reconstruction
from variational_diffusion.anomaly import SCORES, Profiles, Reference, profiles, statistics
from variational_diffusion.classical import code_length
from variational_diffusion.cli import run
from variational_diffusion.errors import InputError
from variational_diffusion.figures import score_figure

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


def test_what_the_statistics_explain_is_not_strange_and_what_costs_more_is():
    """Bands are a function of the statistics, up to 5 %: 30 % above is far, below is not."""
    rng = np.random.default_rng(0)

    def made(n, more=0.0):
        complexity = rng.normal(size=(n, 2))
        logs = np.stack([complexity[:, 0] ** 2, complexity.sum(1)], axis=1)
        noise = 0.05 * rng.normal(size=(n, 2))
        zero = np.zeros(n)
        return Profiles(zero, zero, np.exp(logs + noise + more), zero + np.nan, complexity)

    reference = Reference(made(500))
    own, above, below = (reference.score(made(500, more)) for more in (0.0, 0.3, -0.3))
    assert (above[:, None] > own).mean() > 0.99
    assert (below[:, None] > own).mean() < 0.5
    far = made(500)
    far.statistics[:] += 20
    assert reference.score(far).min() > own.max()


def test_a_reference_scores_itself_as_it_scores_others(generator):
    """Scored by themselves, few examples look less strange than others of the same data."""
    reference = Reference(of(gaussian(60, generator)))
    others = reference.score(of(gaussian(600, generator)))
    itself = reference.own_score()
    assert itself.shape == (60,)
    larger = (others[:, None] > itself).mean()
    assert 0.35 < larger < 0.6
    assert (others[:, None] > reference.score(reference.own)).mean() > larger


def test_data_that_are_too_simple_are_strange_and_only_the_raw_bound_likes_them(generator):
    reference = Reference(of(gaussian(400, generator)))
    own = of(gaussian(200, generator))
    simple = of(gaussian(200, generator, std=0.6 * STD))
    for name in ("bits", "typicality", "profile", "combined"):
        scores = [reference.score(x, name) for x in (own, simple)]
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


def test_mistakes_are_named(generator):
    few = of(gaussian(20, generator))
    for name in ("combined", "profile"):
        for ask in (Reference(few).own_score, lambda name: Reference(few).score(few, name)):
            with pytest.raises(
                InputError, match=f"reference = 20 .* '{name}' takes 38 .* --score bits"
            ):
                ask(name)
    assert np.array_equal(Reference(few).own_score("bits"), few.bits)
    reference = Reference(of(gaussian(60, generator)))
    with pytest.raises(InputError, match="score = 'odd': known are bits"):
        reference.score(few, "odd")
    with pytest.raises(InputError, match="no classical code length"):
        reference.score(few, "complexity")
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
    same = score_figure("bits", own[:1], own[:1])
    assert [patch.get_data()[0].sum() for patch in same.axes[0].patches] == [1, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    small = ["--steps", "30", "--batch-size", "32", "--set", "network.widths=[8,8]"]
    assert run(["train", "digits", "--run", path, *small]) == 0
    return path


def test_the_command_writes_scores_figure_and_sheet(capsys, trained, tmp_path):
    strange = tmp_path / "boards.npy"
    board = 16 * (np.indices((8, 8)).sum(0) % 2)
    np.save(strange, np.stack([np.roll(board, k, axis=0) for k in range(30)]).astype(np.uint8))
    files = {name: str(tmp_path / f"a{name}") for name in (".csv", ".png", ".webp")}
    options = ["--reference", "100", "--draws", "1"]
    arguments = ["score", trained, str(strange), *options]
    targets = ["--out", files[".csv"], "--figure", files[".png"], "--sheet", files[".webp"]]
    assert run([*arguments, *targets, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 30
    assert result["reference"] == 100
    assert result["share_beyond_99_percent_of_the_reference"] > 0.9
    with open(files[".csv"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert set(SCORES) < rows[0].keys()
    combined = [float(row["combined"]) for row in rows]
    assert combined == sorted(combined, reverse=True)
    assert int(rows[0]["example"]) == result["strangest"][0]["example"]
    for ending in (".png", ".webp"):
        with Image.open(files[ending]) as image:
            assert image.size[0] > 300
    assert run([*arguments, "--score", "bits"]) == 0
    assert "by 'bits', the strangest first" in capsys.readouterr().out
    assert run([*arguments, "--out", files[".csv"]]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_image_files_are_called_by_their_names(capsys, tmp_path, generator):
    folder = tmp_path / "images"
    for name in ("a/1.png", "a/2.png", *(f"b/{k}.png" for k in range(498))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = torch.randint(0, 20, (8, 8), generator=generator)
        Image.fromarray((values + 200 * (name == "a/2.png")).numpy().astype(np.uint8)).save(
            folder / name
        )
    path = str(tmp_path / "run")
    small = ["--condition", "label", "--batch-size", "4", "--set", "network.widths=[8,8]"]
    assert run(["train", str(folder), "--run", path, "--steps", "40", *small]) == 0
    table = tmp_path / "scores.csv"
    sheet = str(tmp_path / "sheet.png")
    options = ["--draws", "2", "--out", str(table), "--sheet", sheet, "--condition", "none"]
    assert run(["score", path, str(folder), *options]) == 0
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["file"] == "a/2.png"
    with Image.open(sheet) as picture:  # the only bright one comes first, 64 pixels high
        bright = np.asarray(picture.convert("L"))[10:60] > 190
    assert bright[:, 10:60].all()
    assert not bright[:, 80:].any()
    assert {row["file"] for row in rows} == {
        str(f.relative_to(folder)) for f in folder.rglob("*.*")
    }
    assert "a/2.png" in capsys.readouterr().out
    for command, option in (("evaluate", "--per-example"), ("classify", "--per-example")):
        table = tmp_path / f"{command}.csv"
        assert run([command, path, str(folder), option, str(table)]) == 0
        with table.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[:2] == ["example", "file"]


def test_samples_come_with_their_likelihood(capsys, trained, tmp_path):
    path = tmp_path / "samples.npy"
    arguments = ["sample", trained, "--n", "6", "--steps", "4", "--out", str(path)]
    assert run([*arguments, "--with-likelihood"]) == 0
    with (tmp_path / "samples.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(1 < float(row["bits_per_dim"]) < 15 for row in rows)
    assert "mean" in capsys.readouterr().out
