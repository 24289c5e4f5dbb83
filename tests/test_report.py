"""The report: what is measured and kept, what the page shows, and that it shows it as text."""

import json
import math
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from variational_diffusion.cli import run as vdm
from variational_diffusion.config import DataConfig, RunConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.presets import configure
from variational_diffusion.report import read_section, render, write_section
from variational_diffusion.report.commands import training_command
from variational_diffusion.report.curves import Curve, settled_range, thinned, training_curves
from variational_diffusion.report.images import as_colour, heat_maps
from variational_diffusion.report.measure import PARTS
from variational_diffusion.report.published import published
from variational_diffusion.report.svg import COLOURS, inline_svg
from variational_diffusion.run.directory import Run
from variational_diffusion.run.measurements import Section

CHROMIUM = shutil.which("chromium")
FEW = ["--limit", "40", "--n", "16", "--steps", "8", "--evaluations", "2000"]
TRAIN = ["--steps", "20", "--batch-size", "8", "--threads", "1"]


def output(capsys, arguments, code=0):
    capsys.readouterr()
    assert vdm(arguments) == code
    return capsys.readouterr()


def report(capsys, *arguments):
    return json.loads(output(capsys, ["report", *map(str, arguments), "--json"]).out)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run of images in a folder and a directory whose names are HTML."""
    place = tmp_path_factory.mktemp("runs")
    folder = place / "<img src=x onerror=alert(1)>&'\""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(80):
        image = np.tile(rng.integers(0, 256, (1, 8, 3), dtype=np.uint8), (8, 1, 1))
        Image.fromarray(image).save(folder / f"{i}.png")
    run = place / "<script>alert(2)<%2Fscript>"
    settings = ["--set", "network.widths=[8,8]"]
    assert vdm(["train", str(folder), "--run", str(run), *TRAIN, "--steps", "60", *settings]) == 0
    assert vdm(["report", str(run), *FEW]) == 0
    return run


@pytest.fixture
def no_page(monkeypatch):
    """Measuring without the page, which takes a second."""
    page = '<meta name="generator" content="variational-diffusion report">'
    monkeypatch.setattr("variational_diffusion.report.measure.render", lambda *_, **__: page)


def page_of(run):
    return (Path(run) / "report.html").read_text(encoding="utf-8")


# the page


def test_what_comes_from_the_user_is_text(hostile):
    page = page_of(hostile)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(2)&lt;%2Fscript&gt;" in page
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;&#39;" in page


def test_the_page_is_one_file_that_loads_nothing(hostile):
    page = page_of(hostile)
    addresses = re.findall(r'(?:src|srcset|href|action|data)="([^"]*)"', page)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)


def test_pictures_and_figures_say_what_they_show(hostile):
    page = page_of(hostile)
    images, figures = re.findall(r"<img [^>]*>", page), re.findall(r"<svg [^>]*>", page)
    assert len(images) == 2 + 12 + 2  # the sheet and the film, the neighbours, the extremes
    assert len(figures) == 1 + 1 + 4 + 4
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', figure) for figure in figures)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(hostile, scheme):
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    address = (hostile / "report.html").as_uri()
    heard, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            sizes = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
            assert sizes
            assert all(complete and pixels > 0 for complete, pixels in sizes)
        headings = page.locator("h2").all_inner_texts()
        title = page.locator("h1").inner_text()
        ground, text, tick = (
            page.evaluate(f"getComputedStyle(document.querySelector('{which}')).{what}")
            for which, what in (("body", "backgroundColor"), ("h1", "color"), ("svg text", "fill"))
        )
        browser.close()
    assert headings == [
        "Samples",
        "Likelihood",
        "Most and least likely",
        "Nearest training examples",
        "Training",
        "Noise schedule",
        "How to repeat it",
    ]
    assert title == hostile.name
    assert heard == []
    assert {url for url in asked if not url.startswith("data:")} == {address}
    assert contrast(text, ground) > 7
    assert contrast(tick, ground) > 4.5
    assert (luminance(ground) < 0.1) == (scheme == "dark")


def luminance(colour):
    """Return the relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    values = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Return the contrast ratio of two colours (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# what is measured and kept


def test_figures_are_those_of_the_other_commands(capsys, hostile):
    limit = ["--limit", "40"]
    found = json.loads(output(capsys, ["evaluate", str(hostile), *limit, "--json"]).out)
    likelihood = read_section(Run.open(hostile), "likelihood", "ema")
    summary = likelihood.values["summary"]
    assert summary["bits_per_dim"] == found["bits_per_dim"]
    assert summary["terms"] == found["terms"]
    assert f"{found['bits_per_dim']:.4f} ± {found['standard_error']:.4f}" in page_of(hostile)
    widths = re.findall(r'<span style="width: ([\d.]+)%">', page_of(hostile))
    assert len(widths) == 1 + 3 + len(likelihood.values["classical"])
    assert max(map(float, widths)) == 100
    assert "What vdm evaluate gave" not in page_of(hostile)
    output(capsys, ["report", str(hostile)])
    row = r"<code>vdm evaluate RUN [^<]*--limit 40[^<]*</code>"
    assert len(re.findall(row, page_of(hostile))) == 1
    figure = str(hostile.parent / "schedule.png")
    arguments = ["schedule", str(hostile), "--evaluations", "2000", "--out", figure, "--json"]
    found = json.loads(output(capsys, arguments).out)
    assert found["variance"] == read_section(Run.open(hostile), "profile", "ema").values["variance"]
    drawn = str(hostile.parent / "samples.npy")
    output(capsys, ["sample", str(hostile), "--n", "16", "--steps", "8", "--out", drawn])
    samples = read_section(Run.open(hostile), "samples", "ema").arrays["samples"]
    np.testing.assert_array_equal(samples, np.load(drawn))


def test_samples_are_compared_with_every_training_example(hostile):
    run = Run.open(hostile)
    samples = read_section(run, "samples", "ema").arrays["samples"].numpy().astype(float)
    found = read_section(run, "neighbours", "ema")
    splits = open_dataset(run.config.data).splits
    train, test = (splits[name].read().astype(float) for name in ("train", "test"))
    for queries, name in ((samples, "distances"), (test[: len(samples)], "test_distances")):
        squares = np.square(queries[:, None] - train).mean((2, 3, 4))
        expected = np.sqrt(np.sort(squares, axis=1)[:, :3])
        np.testing.assert_allclose(found.arrays[name], expected, rtol=1e-6)
    assert found.values == found.values | {"searched": f"{len(train):,} training examples"}
    closest = found.arrays["distances"][:, 0].argsort()[0]
    sample, *neighbours = found.arrays["shown"][0].numpy().astype(float)
    np.testing.assert_array_equal(sample, samples[closest])
    far = [np.sqrt(np.square(sample - each).mean()) for each in neighbours]
    np.testing.assert_allclose(found.arrays["distances"][closest], far, rtol=1e-6)


def test_the_most_and_least_likely_are_those(hostile):
    examples = read_section(Run.open(hostile), "examples", "ema")
    bits = examples.arrays["maps"].flatten(1).mean(1)
    n = len(bits) // 2
    assert bits[:n].max() < bits[n:].min()
    assert torch.equal(bits[:n], bits[:n].sort().values)
    assert torch.equal(bits[n:], bits[n:].sort(descending=True).values)


def test_what_was_measured_is_used_again(capsys, hostile):
    before = page_of(hostile)
    start = time.process_time()  # of this process: others may be busy
    assert report(capsys, hostile)["measured"] == []
    assert time.process_time() - start < 20
    assert page_of(hostile) == before


def test_other_options_and_damage_are_measured_again(capsys, hostile, tmp_path, no_page):
    run = tmp_path / "run"
    shutil.copytree(hostile, run)
    assert report(capsys, run, "--steps", "4")["measured"] == ["samples", "neighbours"]
    assert report(capsys, run, "--steps", "4")["measured"] == []
    stored = run / "report" / "likelihood-ema.safetensors"
    content = bytearray(stored.read_bytes())
    content[-5] ^= 1
    stored.write_bytes(content)
    assert report(capsys, run, "--limit", "10")["measured"] == ["likelihood", "examples"]


def test_other_weights_are_measured_again(capsys, hostile, tmp_path, no_page, monkeypatch):
    left_out = {"profile", "comparison"}  # the slowest, and what was not asked for
    parts = {name: part for name, part in PARTS.items() if name not in left_out}
    monkeypatch.setattr("variational_diffusion.report.measure.PARTS", parts)
    few = ["--limit", "4", "--n", "4", "--steps", "1"]
    run = tmp_path / "run"
    shutil.copytree(hostile, run)
    opened = Run.open(run)
    others, about = opened.read(run / "model.safetensors", "raw")
    opened.write(run / "ema.safetensors", "ema", others, about)
    assert report(capsys, run, *few)["measured"] == list(parts)
    assert report(capsys, run)["measured"] == []
    assert report(capsys, run, "--refresh", *few)["measured"] == list(parts)
    assert report(capsys, run, "--weights", "raw", *few)["measured"] == list(parts)


def test_data_that_are_gone_leave_out_what_needs_them(capsys, hostile, tmp_path):
    """What was measured before stays in the page."""
    run, folder = tmp_path / "run", Path(Run.open(hostile).config.data.source)
    shutil.copytree(hostile, run)
    moved = folder.rename(tmp_path / "moved")
    try:
        assert report(capsys, run)["left_out"] == []
        shutil.rmtree(run / "report")
        (run / "metrics.jsonl").unlink()
        found = output(capsys, ["report", str(run), *FEW])
    finally:
        moved.rename(folder)
    assert found.err.count("likelihood, profile, neighbours left out: data = ") == 1
    page = page_of(run)
    assert "likelihood, profile, neighbours left out: data = &#39;" in page
    assert '<section id="samples">' in page
    assert '<section id="schedule">' in page
    assert '<section id="likelihood">' not in page
    assert '<section id="neighbours">' not in page
    assert '<section id="training">' not in page


def test_images_of_real_values(capsys, tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 6, 7)).astype(np.float32)
    np.save(tmp_path / "fields.npy", values)
    run = tmp_path / "run"
    small = ["--set", "network.widths=[8,8]"]
    output(capsys, ["train", str(tmp_path / "fields.npy"), "--run", str(run), *TRAIN, *small])
    assert report(capsys, run, *FEW)["left_out"] == []
    page = page_of(run)
    assert "6×7 grey images, real values" in page
    assert len(re.findall("<img ", page)) == 2 + 12 + 2
    assert "% of the range" not in page
    assert set(re.findall(r'<span style="width: ([\d.]+)%">', page)) == {"0.0"}


def test_vectors_and_real_values(capsys, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "points.npy", rng.normal(size=(300, 2)).astype(np.float32))
    run = tmp_path / "run"
    output(capsys, ["train", str(tmp_path / "points.npy"), "--run", str(run), *TRAIN])
    assert report(capsys, run, *FEW)["left_out"] == []
    page = page_of(run)
    assert "<img" not in page
    assert "arrays of 2 entries, real values" in page
    assert "The first two entries of 16 samples and " in page
    assert '<section id="extremes">' not in page
    assert "WebP" not in page
    assert "the medians are" in page


def test_a_model_with_conditions(capsys, tmp_path, no_page):
    """Its page is in the test of models without: here is what may differ."""
    run, drawn = tmp_path / "run", tmp_path / "samples.npy"
    small = ["--condition", "label", "--set", "network.widths=[8,8]"]
    output(capsys, ["train", "digits", "--run", str(run), *TRAIN, *small])
    few = ["--limit", "20", "--n", "16", "--steps", "2", "--evaluations", "2000"]
    assert report(capsys, run, *few)["left_out"] == []
    opened = Run.open(run)
    found = {name: read_section(opened, name, "ema") for name in PARTS}
    sections = {name: section for name, section in found.items() if section is not None}
    page = render(opened, "ema", sections)
    assert "−log p(x|c) for infinitely many steps" in page
    assert "given conditions as in the data" in page
    assert "<span>--condition</span> <span>label</span>" in page
    output(capsys, ["sample", str(run), "--n", "16", "--steps", "2", "--out", str(drawn)])
    np.testing.assert_array_equal(sections["samples"].arrays["samples"], np.load(drawn))
    found = json.loads(output(capsys, ["evaluate", str(run), "--limit", "20", "--json"]).out)
    assert sections["likelihood"].values["summary"]["bits_per_dim"] == found["bits_per_dim"]


def test_only_a_report_is_replaced(capsys, hostile, tmp_path, no_page):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>mine</title>", encoding="utf-8")
    told = output(capsys, ["report", str(hostile), "--out", str(page)], code=2).err
    assert "exists and is no report: move it, or give another --out" in told
    assert "mine" in page.read_text(encoding="utf-8")
    page.unlink()
    for _ in range(2):
        output(capsys, ["report", str(hostile), "--out", str(page)])
    told = output(capsys, ["report", str(hostile), "--sampler", "none"], code=2).err
    assert "sampler = 'none'" in told
    told = output(capsys, ["report", str(hostile), "--out", str(tmp_path)], code=2).err
    assert "give a name that ends in .html" in told


def test_a_run_without_weights_is_told_so(capsys, hostile, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(hostile / "config.json", run)
    assert "no weights are saved yet" in output(capsys, ["report", str(run)], code=2).err
    assert not (run / "report.html").exists()


def test_a_section_comes_back_as_it_was_written(hostile, tmp_path):
    shutil.copytree(hostile, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    section = Section({"a": torch.arange(3.0)}, {"text": "<b>", "x": 1.5}, {"n": 3})
    write_section(run, "own", "ema", section)
    found = read_section(run, "own", "ema", {"n": None})
    assert torch.equal(found.arrays["a"], section.arrays["a"])
    assert (found.values, found.options) == (section.values, section.options)
    assert read_section(run, "own", "ema", {"n": 4}) is None
    assert read_section(run, "own", "raw") is None


# the parts


def lines(count, batch=10):
    terms = {"prior": 0.1, "reconstruction": 0.2}
    train = [
        {
            "step": 50 * (i + 1),
            "seconds": float(i),
            "train": {**terms, "diffusion": 3.0 + (i == 0) * 100},
            "variance": 8.0,
            "gradient_norm": 1.0,
            "gamma_0": -5.0,
            "gamma_1": 5.0,
        }
        for i in range(count)
    ]
    validation = {"bits_per_dim": 3.2, "standard_error": 0.25}
    return [*train, {"step": 50 * count, "seconds": count + 1.0, "validation": validation}]


def test_curves_have_the_error_of_a_mean():
    """8 bits² over 50 steps of 10 examples; the mean of two such points has the error of 1,000."""
    curves = training_curves(lines(4), batch_size=10)
    np.testing.assert_allclose(curves.bound.y[1:], 3.3)
    np.testing.assert_allclose(curves.bound.error, math.sqrt(8 / 500))
    np.testing.assert_allclose(curves.validation.error, [0.25])
    assert (curves.steps, curves.seconds) == (200, 5.0)
    half = thinned(curves.bound, 2)
    np.testing.assert_allclose(half.x, [75, 175])
    np.testing.assert_allclose(half.error, math.sqrt(8 / 1000))
    np.testing.assert_allclose(thinned(curves.bound, 2, correlated=True).error, half.error * 2**0.5)
    assert training_curves([], 10) is None
    assert len(training_curves(lines(4)[:-1], 10).validation.x) == 0
    assert len(thinned(Curve(*np.ones((3, 1001))), 240).x) <= 240


def test_the_beginning_of_a_training_does_not_set_the_scale():
    curves = training_curves(lines(40), batch_size=10)
    low, high = settled_range(curves.bound, curves.validation)
    assert 2.8 < low < 2.95
    assert 3.45 < high < 3.6


@pytest.mark.parametrize(
    ("source", "shape", "name"),
    [
        ("hf:uoft-cs/cifar10", (3, 32, 32), "CIFAR-10"),
        ("/data/CIFAR-10", (3, 32, 32), "CIFAR-10"),
        ("hf:uoft-cs/cifar100", (3, 32, 32), ""),
        ("/data/cifar10", (3, 64, 64), ""),
        ("/data/imagenet-64", (3, 64, 64), "ImageNet 64×64, old release"),
        ("digits", (1, 8, 8), ""),
    ],
)
def test_published_figures_are_of_data_that_are_recognised(source, shape, name):
    found, figures = published(DataConfig(source=source, levels=256), shape)
    assert found == name
    assert bool(figures) == bool(name)
    assert published(DataConfig(source=source, levels=32), shape) == ("", [])


def test_published_figures_are_shown_and_said_to_be_elsewhere(hostile, tmp_path):
    run = Run.open(hostile)
    model = run.config.model.model_copy(update={"shape": (3, 32, 32)})
    data = run.config.data.model_copy(update={"source": "cifar10"})
    sections = {"likelihood": read_section(run, "likelihood", "ema")}
    run.config = run.config.model_copy(update={"data": data, "model": model})
    page = render(run, "ema", sections)
    assert "VDM (Kingma et al., 2021), bound" in page
    assert "published for CIFAR-10, by longer training on other hardware" in page


@pytest.mark.parametrize(
    ("source", "options", "choices"),
    [
        ("digits", {}, {"settings": {"training.steps": 300}}),
        (
            "digits",
            {"validation": 0.2, "split_seed": 3, "flip": "horizontal", "crop": (6, 7)},
            {
                "settings": {
                    "training.minutes": 2.5,
                    "training.seed": 4,
                    "training.batch_size": 16,
                    "training.betas": [0.8, 0.95],
                    "training.clip_norm": 1.0,
                    "network.widths": [8, 8],
                    "schedule.learn_end_points": False,
                    "model.prediction": "noise",
                }
            },
        ),
        (
            "digits",
            {},
            {
                "preset": "paper",
                "settings": {"training.steps": 7, "network.blocks": 2, "network.width": 32},
            },
        ),
        (
            "digits",
            {},
            {"schedule": "cosine", "network": "mlp", "settings": {"training.steps": 7}},
        ),
    ],
)
def test_the_command_that_is_shown_makes_the_same_run(capsys, source, options, choices):
    data = DataConfig(source=source, **options)
    config = configure(data, open_dataset(data), **choices)
    command = training_command(config, "runs/it's mine")
    words = shlex.split(command)
    assert words[:5] == ["vdm", "train", source, "--run", "runs/it's mine"]
    assert vdm([*words[1:], "--dry-run"]) == 0
    assert RunConfig.from_json(capsys.readouterr().out).differences(config) == []


def test_a_run_that_no_command_makes_has_none():
    data = DataConfig(source="digits")
    config = configure(data, open_dataset(data), settings={"training.steps": 1})
    options = {"no": "such option"}
    network = config.model.network.model_copy(update={"options": options})
    model = config.model.model_copy(update={"network": network})
    assert training_command(config.model_copy(update={"model": model}), "run") is None


def test_figures_take_their_colours_and_fonts_from_the_page():
    from variational_diffusion.report import plots  # noqa: PLC0415

    curves = training_curves(lines(5), batch_size=10)
    svg = inline_svg(plots.bits_figure(curves), "one", "of <b> & it")
    assert not any(colour in svg for colour in COLOURS.values())
    assert not re.search(r"#[0-9a-f]{6}\b", svg.replace("#one", ""))
    assert "font-family" not in svg
    assert 'aria-label="of &lt;b&gt; &amp; it"' in svg
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"text", "muted", "line", "blue", "orange"}
    assert inline_svg(plots.bits_figure(curves), "one", "of <b> & it") == svg


def test_maps_go_from_dark_to_light():
    maps = heat_maps(np.array([[[0.0, 1.0, 2.0]]]), 0.0, 2.0).astype(int)
    lightness = maps.sum(1).ravel()
    assert maps.shape == (1, 3, 1, 3)
    assert lightness[0] < lightness[1] < lightness[2]


@pytest.mark.parametrize(("channels", "levels"), [(1, 17), (3, 256), (4, 256), (1, 65_536)])
def test_images_in_colour_are_as_light_as_they_were(channels, levels):
    images = np.full((1, channels, 2, 2), (levels - 1) // 2)
    images[:, 3:] = levels - 1  # opaque
    shown = as_colour(images, levels)
    assert shown.shape == (1, 3, 2, 2)
    assert np.abs(shown.astype(int) - 127).max() <= 1
