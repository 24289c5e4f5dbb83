"""What a report shows of each measurement: figures, pictures, tables, and sentences about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup

from variational_diffusion.config import RunConfig
from variational_diffusion.images.pictures import Range, beside, is_image, sheet
from variational_diffusion.likelihood.loss_profile import Profile
from variational_diffusion.report import plots
from variational_diffusion.report.curves import Training
from variational_diffusion.report.images import (
    GAP,
    animation_uri,
    as_colour,
    data_uri,
    heat_maps,
)
from variational_diffusion.report.published import published
from variational_diffusion.report.svg import inline_svg
from variational_diffusion.run.measurements import Section
from variational_diffusion.schedules import Cosine, FixedLinear, floor_note

_SHEET_WIDTH = 1200
"""Pixels that a sheet of large images may take."""


_POINTS = 2000
"""Points that a figure has at most: a page with more is slow."""


class Plot(NamedTuple):
    """A figure within the page, with what is said below it."""

    svg: Markup
    title: str
    caption: str = ""


class Picture(NamedTuple):
    """A picture within the page. still: what to show instead where motion is not wanted."""

    uri: str
    alt: str
    width: int
    height: int
    caption: str = ""
    still: str = ""


class Row(NamedTuple):
    """A row of the table of bits per dimension. share: of the widest bar, 0 to 1."""

    name: str
    bits: str
    kind: str
    share: float
    note: str = ""


class Look(NamedTuple):
    """How examples of the run's data are shown. value_range: of real values."""

    levels: int | None
    value_range: Range | None

    @classmethod
    def of(cls, config: RunConfig, sections: dict[str, Section]) -> Look:
        """Return the levels of the data; for real values, the range of the test examples."""
        levels = config.data.levels
        if levels is not None:
            return cls(levels, None)
        for name, key in (("examples", "examples"), ("samples", "samples")):
            if name in sections:
                values = sections[name].arrays[key]
                return cls(None, (float(values.min()), float(values.max())))
        return cls(None, None)

    def sheet(self, images: np.ndarray, columns: int, alt: str, caption: str = "") -> Picture:
        """Return a sheet of images, shape (n, channels, height, width)."""
        drawn = sheet(images, self.levels, columns, value_range=self.value_range)
        return Picture(data_uri(drawn), alt, *drawn.size, caption)


def training_plots(training: Training) -> list[Plot]:
    first, last = training.bound.y[0], training.bound.y[-1]
    text = f"Bits per dimension of training batches, from {first:.3g} to {last:.3f}"
    if len(training.validation.y):
        text += f"; of the validation at the end {training.validation.y[-1]:.3f}"
    ends = f"from {training.gamma_0.y[-1]:.2f} to {training.gamma_1.y[-1]:.2f}"
    return [
        Plot(
            inline_svg(plots.bits_figure(training), "bits", text),
            "Bits per dimension",
            "Bands: one standard error, of the mean over the batches between two points, and of "
            "the validation for the choice of its examples. Early values may be beyond the top.",
        ),
        Plot(
            inline_svg(
                plots.terms_figure(training),
                "terms",
                f"Prior, at the end {training.prior.y[-1]:.2g}, and reconstruction, at the end "
                f"{training.reconstruction.y[-1]:.2g} bits per dimension",
            ),
            "Prior and reconstruction",
            "The rest of the bound is the diffusion term.",
        ),
        Plot(
            inline_svg(
                plots.end_points_figure(training), "ends", f"End points of γ, in the end {ends}"
            ),
            "Ends of the noise schedule",
        ),
        Plot(
            inline_svg(
                plots.gradient_figure(training),
                "gradient",
                f"Norm of the gradient, in the end {training.gradient_norm.y[-1]:.3g}",
            ),
            "Gradient",
        ),
    ]


def floor_note_of(schedule: Section, config: RunConfig) -> str | None:
    """Return what is to be said of a γ_0 that has come to its floor; None where it has not."""
    gamma_0 = float(schedule.arrays["gamma"][0])
    return floor_note(gamma_0, config.model.schedule.options.get("floor"))


def schedule_plots(schedule: Section, profile: Section | None) -> list[Plot]:
    """Return what the noise schedule has learned; what m(γ) says of it where that is measured."""
    t, gamma = (schedule.arrays[name].numpy() for name in ("t", "gamma"))
    gamma_0, gamma_1 = float(gamma[0]), float(gamma[-1])
    gammas, densities = {"learned": gamma}, {}
    densities["learned"] = (gamma, 1 / schedule.arrays["rate"].numpy())
    for name, kind in (("linear", FixedLinear), ("cosine", Cosine)):
        with torch.no_grad():
            level, rate = kind(gamma_0, gamma_1).gamma_and_rate(torch.from_numpy(t).float())
        gammas[name] = level.numpy()
        densities[name] = (level.numpy(), 1 / rate.numpy())
    ends = f"from {gamma_0:.2f} at t = 0 to {gamma_1:.2f} at t = 1"
    found = [
        Plot(
            inline_svg(plots.gamma_figure(t, gammas), "gamma", f"γ(t) rises {ends}"),
            "Noise level γ(t)",
        ),
        Plot(
            inline_svg(
                plots.snr_figure(t, gammas),
                "snr",
                f"Signal-to-noise ratio, falling from {math.exp(-gamma_0):.3g} to "
                f"{math.exp(-gamma_1):.3g}",
            ),
            "Signal-to-noise ratio SNR(t)",
        ),
    ]
    if profile is None:
        return found
    measured = profile_of(profile)
    peak = measured.gamma[measured.mean.argmax()]
    found.append(
        Plot(
            inline_svg(
                plots.profile_figure(measured.gamma, measured.mean, measured.low, measured.high),
                "profile",
                f"Loss m(γ), with its peak of {measured.mean.max():.3g} near γ = {peak:.1f}",
            ),
            "Loss at each noise level m(γ)",
            f"{measured.evaluations:,} evaluations of the network on test examples. The area under "
            f"the mean is the diffusion term, {measured.diffusion:.3f} bits/dim.",
        )
    )
    found.append(
        Plot(
            inline_svg(
                plots.density_figure(densities, measured.gamma, measured.best_density),
                "density",
                "Density of γ in training under each schedule, and the best one, which follows "
                "the root of E[m²]",
            ),
            "Where training looks",
            "The closer to the best, the less the loss varies from draw to draw.",
        )
    )
    return found


def profile_of(section: Section) -> Profile:
    """Return the profile that was stored."""
    names = ("mean", "mean_square", "low", "high")
    mean, mean_square, low, high = (section.arrays[name].numpy() for name in names)
    return Profile(
        gamma_0=section.values["gamma_0"],
        gamma_1=section.values["gamma_1"],
        mean=mean,
        mean_square=mean_square,
        low=low,
        high=high,
        evaluations=section.values["evaluations"],
    )


def variance_rows(profile: Section) -> list[tuple[str, str, str]]:
    """Return the variance of the diffusion term by schedule, and in units of the least possible."""
    variance, error = profile.values["variance"], profile.values["variance_error"]
    names = {"learned": "learned", "linear": "linear", "cosine": "cosine", "optimum": "best"}
    return [
        (
            shown,
            f"{variance[name]:.3g} ± {error[name]:.2g}",
            f"{variance[name] / variance['optimum']:,.2f}",
        )
        for name, shown in names.items()
    ]


def comparison(likelihood: Section, config: RunConfig) -> tuple[list[Row], str]:
    """Return the table of bits per dimension, and the name of the data in published tables."""
    summary, classical = likelihood.values["summary"], likelihood.values["classical"]
    data_name, figures = published(config.data, config.model.shape)
    bits, error = summary["bits_per_dim"], summary["standard_error"]
    widest = max([bits, *classical.values(), *(each.bits_per_dim for each in figures)])

    def row(name: str, value: float, kind: str, shown: str, note: str = "") -> Row:
        # the bits of a density may be negative: no bars
        share = 0.0 if config.data.levels is None else min(1.0, max(0.0, value / widest))
        return Row(name, shown.replace("-", "−"), kind, share, note)

    plus_minus = "" if error is None else f" ± {error:.4f}"
    rows = [row("this model, bound", bits, "model", f"{bits:.4f}{plus_minus}")]
    for name, value in summary["terms"].items():
        rows.append(row(name, value, "term", f"{value:.4f}"))
    for name, value in classical.items():
        rows.append(row(name, value, "classical", f"{value:.3f}"))
    for each in figures:
        rows.append(
            row(each.model, each.bits_per_dim, "published", f"{each.bits_per_dim:.2f}", each.kind)
        )
    return rows, data_name


def estimates(recorded: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what `vdm evaluate` recorded as rows of a table."""
    rows = []
    for entry in recorded:
        error = entry["standard_error"]
        bits = f"{entry['bits_per_dim']:.4f}" + ("" if error is None else f" ± {error:.4f}")
        steps = "" if entry["steps"] is None else f", {entry['steps']} steps"
        older = f"{entry['examples']:,} {entry['split']} examples"
        rows.append(
            {
                "estimator": entry["estimator"] + steps,
                "examples": f"{entry['data']}: {entry.get('description', older)}",
                "bits": bits.replace("-", "−"),
                "command": entry["command"],
            }
        )
    return rows


def likelihood_plot(likelihood: Section) -> Plot:
    """Return the histogram of the test examples' bits."""
    bits = likelihood.arrays["bits_per_dim"].numpy()
    low, middle, high = np.quantile(bits, [0.05, 0.5, 0.95])
    return Plot(
        inline_svg(
            plots.histogram_figure({"test": bits}, "bits per dimension"),
            "histogram",
            f"Histogram of the bits per dimension of {len(bits)} test examples: median "
            f"{middle:.2f}, 5 % below {low:.2f}, 5 % above {high:.2f}",
        ),
        "Bits of every test example",
    )


def model_rows(comparison: Section) -> list[tuple[str, str, str]]:
    """Return name, bits per dimension and 95 % interval of each compared model."""
    return [
        (each["name"], _plus_minus(each["bits_per_dim"], each["standard_error"]), _range(each))
        for each in comparison.values["models"]
    ]


def pair_rows(comparison: Section) -> list[tuple[str, str, str, str]]:
    """Return each pair in words, the difference, its interval and the error of the draws."""
    return [
        (
            f"{pair['second']} − {pair['first']}",
            _plus_minus(pair["difference"], pair["standard_error"], sign="+"),
            _range(pair),
            "" if pair["draws_error"] is None else f"± {pair['draws_error']:.4f}",
        )
        for pair in comparison.values["pairs"]
    ]


def pair_plots(comparison: Section) -> list[Plot]:
    """Return, for each other run, the difference of every example over the bits of this run."""
    names = [each["name"] for each in comparison.values["models"]]
    bits = comparison.arrays["bits"].numpy()
    shown = bits[:, :: -(-bits.shape[1] // _POINTS)]
    found = []
    for i, name in enumerate(names[1:], start=1):
        mean = float((bits[i] - bits[0]).mean())
        better = float((bits[i] < bits[0]).mean())
        found.append(
            Plot(
                inline_svg(
                    plots.difference_figure(shown[0], shown[i] - shown[0], mean),
                    f"pair{i}",
                    f"Bits per dimension of {name} minus those of {names[0]} for {shown.shape[1]} "
                    f"examples, over those of {names[0]}: the mean is {mean:.4f}",
                ),
                f"{name} − {names[0]}, example by example",
                f"{name} takes fewer bits for {better:.0%} of the examples. Dashed: no difference. "
                "The noise of the estimate spreads the points.",
            )
        )
    return found


def _plus_minus(value: float, error: float | None, sign: str = "") -> str:
    text = f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")
    return text.replace("-", "−")


def _range(values: dict[str, Any]) -> str:
    low, high = values["interval"] or (None, None)
    return "" if low is None else f"{low:.4f} to {high:.4f}".replace("-", "−")


def sample_pictures(samples: Section, look: Look) -> tuple[Picture, Picture]:
    """Return the sheet of samples, and how the first of them came out of noise."""
    images = samples.arrays["samples"].numpy()
    width = images.shape[-1]
    columns = max(1, min(8, _SHEET_WIDTH // width, math.isqrt(len(images))))
    images = images[: columns**2]
    drawn = look.sheet(images, columns, f"{len(images)} samples of the model, drawn at random")
    frames = samples.arrays["frames"].numpy()
    columns = math.isqrt(frames.shape[2])
    still = beside(frames[-1], look.levels, look.value_range, columns, GAP)
    film = Picture(
        animation_uri(frames, look.levels, columns, value_range=look.value_range),
        f"Animation: {frames.shape[2]} samples come out of noise, and beside them the estimates "
        "of what they will be",
        *still.size,
        "Left the noisy z, right what the network takes it to become.",
        data_uri(still),
    )
    return drawn, film


def neighbour_cards(neighbours: Section, look: Look) -> list[Picture]:
    """Return each of the samples that are nearest to a training image, beside its nearest ones."""
    unit, short = ("", "") if look.levels is None else (" % of the range", " %")
    scale = 1 if look.levels is None else 100 / (look.levels - 1)
    cards = []
    for images, distances in zip(
        neighbours.arrays["shown"].numpy(), neighbours.arrays["shown_distances"], strict=True
    ):
        texts = [f"{scale * float(distance):.3g}" for distance in distances]
        cards.append(
            look.sheet(
                images,
                len(images),
                f"A sample, and its nearest training images, at {', '.join(texts)}{unit}",
                f"{texts[0]}{short} away",
            )
        )
    return cards


def neighbour_plot(neighbours: Section, look: Look) -> Plot:
    """Return how far samples and test examples are from the nearest training example."""
    scale = 1 if look.levels is None else 100 / (look.levels - 1)
    values = {
        name: scale * neighbours.arrays[key][:, 0].numpy()
        for name, key in (("samples", "distances"), ("test examples", "test_distances"))
    }
    medians = {name: float(np.median(each)) for name, each in values.items()}
    unit = "" if look.levels is None else ", % of the range"
    return Plot(
        inline_svg(
            plots.histogram_figure(
                values, f"distance to the nearest training example{unit}", bins=24
            ),
            "neighbours",
            "Distances to the nearest training example: "
            + ", ".join(f"{name} have the median {each:.3g}" for name, each in medians.items()),
        ),
        "Distance to the nearest training example",
        "Root of the mean squared difference. Samples that are copies would be far closer than "
        "test examples, which the model has not seen: the medians are "
        + " and ".join(f"{each:.3g} ({name})" for name, each in medians.items())
        + ".",
    )


def extreme_pictures(examples: Section, look: Look) -> list[Picture]:
    """Return the most and the least likely test images, each above the map of its bits."""
    images, maps = examples.arrays["examples"].numpy(), examples.arrays["maps"].numpy()
    colour = as_colour(images, look.levels, look.value_range)
    bits = maps.mean(1)  # over the channels
    low, high = np.quantile(bits, [0.01, 0.99])
    heat = heat_maps(bits, float(low), float(high))
    means = bits.mean((1, 2))
    n = len(images) // 2
    columns = max(1, min(n, _SHEET_WIDTH // images.shape[-1]))
    found = []
    for title, rows in (("most", slice(0, columns)), ("least", slice(n, n + columns))):
        both = np.concatenate([colour[rows], heat[rows]])
        drawn = sheet(both, 256, columns)
        found.append(
            Picture(
                data_uri(drawn),
                f"The {columns} {title} likely test images, and below each the map of its bits",
                *drawn.size,
                f"{title.capitalize()} likely: {means[rows].min():.2f} to "
                f"{means[rows].max():.2f} bits/dim. Maps from {low:.2f} (dark) to {high:.2f} "
                f"(light) bits a pixel, by {examples.values['draws']} evaluations of the network.",
            )
        )
    return found


def cloud_plot(samples: Section, examples: Section | None) -> Plot:
    """Return what samples that are no images look like: their first two entries, or the only."""
    values = {"samples": samples.arrays["samples"].flatten(1)[:, :2].double().numpy()}
    if examples is not None:
        values["test examples"] = examples.arrays["examples"].flatten(1)[:, :2].double().numpy()
    text = " and ".join(f"{len(each)} {name}" for name, each in values.items())
    if values["samples"].shape[1] == 1:
        figure = plots.histogram_figure({k: v[:, 0] for k, v in values.items()}, "value")
        return Plot(inline_svg(figure, "cloud", f"Histogram of {text}"), "Samples")
    figure = plots.scatter_figure(values)
    return Plot(
        inline_svg(figure, "cloud", f"The first two entries of {text}, as points"),
        "Samples: the first two entries",
    )


def shows_images(config: RunConfig) -> bool:
    """Tell whether the run's examples are images."""
    return is_image(config.model.shape)
