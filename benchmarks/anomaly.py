"""How well anomaly scores tell foreign images from a model's own, and how true their p-values are.

    vdm train fashion-mnist --run runs/fashion --minutes 20
    python benchmarks/anomaly.py runs/fashion

The foreign sets are handwritten digits enlarged to the model's size, and the test images upside
down, blurred, replaced by noise (uniform in the levels, and with every image's own values shuffled)
and by one constant each. Images of one channel. The first table has areas under the ROC curve, the
second the share that is marked at p ≤ 0.01.

The third table is of the run's own examples. Validation and test images, none of which the model
was trained on, are parted at random 200 times into held-out and new ones: how many of the new ones
are marked? In the mean over repetitions it has to be the rate.
"""

from __future__ import annotations

from dataclasses import replace

import click
import numpy as np
from common import device_of, log_option, markdown, report, threads_option
from PIL import Image, ImageFilter
from scipy import stats
from sklearn.metrics import roc_auc_score

from variational_diffusion.anomaly import SCORES, Profiles, Reference, measured, score
from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.model import VDM
from variational_diffusion.run.directory import Run

_RATES = (0.01, 0.05)
_REPETITIONS = 200


@click.command()
@click.argument("run")
@click.option("--limit", type=click.IntRange(50), default=500, show_default=True)
@click.option("--first", type=click.IntRange(0), default=0, help="Leave out so many test images.")
@click.option("--reference", type=click.IntRange(50), default=1000, show_default=True)
@click.option("--draws", type=click.IntRange(1), default=2, show_default=True)
@click.option("--foreign/--no-foreign", "with_foreign", default=True, help="Tables one and two.")
@threads_option
@log_option
def main(
    run: str,
    limit: int,
    first: int,
    reference: int,
    draws: int,
    with_foreign: bool,
    threads: int,
    log: bool,
) -> None:
    """Score a RUN's test images and foreign ones of the same number and size."""
    device = device_of(threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    splits = open_dataset(opened.config.data).splits
    held_out = splits["validation"].sample(reference)
    test = splits["test"]
    test = replace(test, indices=test.indices[first : first + limit])
    tables = []
    if with_foreign:
        tables += against_foreign(vdm, test, held_out, draws)
    tables.append(of_its_own(vdm, test, held_out, draws))
    report("\n\n".join(tables), log=log)


def against_foreign(vdm: VDM, test: Split, held_out: Split, draws: int) -> list[str]:
    """Return a table of areas under the ROC curve, and one of the shares that are marked."""
    sets = {
        name: Split(ArraySource(images, name, levels=256), np.arange(len(images)))
        for name, images in foreign(test.read(), vdm.shape).items()
    }
    parts = {"own": test, **sets}
    found = score(vdm, parts, held_out, draws=draws)
    rows = {name: found.split == name for name in parts}
    reference = Reference(Profiles.joined(measured(vdm, held_out, draws=draws)))
    areas: list[list[object]] = []
    marked: list[list[object]] = []
    for name, of in rows.items():
        bits = f"{found.profiles.bits[of].mean():.2f}"
        p = [reference.judged(found.profiles.rows(of), each)[1] for each in SCORES]
        marked.append([name, bits, *(f"{(each <= 0.01).mean():.1%}" for each in p)])
        if name == "own":
            continue
        truth = np.repeat([0, 1], [rows["own"].sum(), of.sum()])
        values = [
            roc_auc_score(truth, np.concatenate([scores[rows["own"]], scores[of]]))
            for scores in found.scores.values()
        ]
        areas.append([name, bits, *(f"{area:.3f}" for area in values)])
    means = [np.mean([float(str(row[2 + k])) for row in areas]) for k in range(len(SCORES))]
    areas.append(["mean", "", *(f"{mean:.3f}" for mean in means)])
    return [
        "Area under the ROC curve against the model's own "
        f"{len(test)} test images:\n\n{markdown(['foreign set', 'bits/dim', *SCORES], areas)}",
        f"Marked at p ≤ 0.01, by {len(held_out)} held-out examples:\n\n"
        + markdown(["set", "bits/dim", *SCORES], marked),
    ]


def of_its_own(vdm: VDM, test: Split, held_out: Split, draws: int) -> str:
    """Return a table of the rates of false alarms over random partings of the unseen examples.

    One new example of each repetition is counted, too: those counts are binomial.
    """
    parts = (measured(vdm, split, draws=draws) for split in (held_out, test))
    pool = Profiles.joined(profile for part in parts for profile in part)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(pool)) for _ in range(_REPETITIONS)]
    rows: list[list[object]] = []
    for name in SCORES:
        p = []
        for order in orders:
            reference = Reference(pool.rows(order[: len(held_out)]))
            p.append(reference.judged(pool.rows(order[len(held_out) :]), name)[1])
        n = reference.calibrating(name)
        for rate in _RATES:
            rates = [(each <= rate).mean() for each in p]
            low, high = stats.binom(_REPETITIONS, rate).interval(0.95)
            rows.append(
                [
                    name,
                    n,
                    f"{rate:.0%}",
                    f"{int(rate * (n + 1) + 1e-9) / (n + 1):.2%}",
                    f"{np.mean(rates):.2%} ± {np.std(rates) / np.sqrt(_REPETITIONS):.2%}",
                    f"{np.quantile(rates, 0.025):.1%} to {np.quantile(rates, 0.975):.1%}",
                    f"{sum(each[0] <= rate for each in p)} ({low:.0f} to {high:.0f})",
                ]
            )
    heads = ["score", "calibration", "asked", "expected", "marked", "95 % of repetitions"]
    return (
        f"False alarms, {len(held_out)} held-out and {len(pool) - len(held_out)} new examples, "
        f"{_REPETITIONS} random partings:\n\n"
        + markdown([*heads, f"first new one, of {_REPETITIONS} (binomial 95 %)"], rows)
    )


def foreign(images: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return sets of images that are not the model's own; `images`: (n, 1, height, width)."""
    rng = np.random.default_rng(0)
    n, _, height, width = images.shape
    digits = open_dataset(DataConfig(source="digits")).splits["train"].read()[:n, 0]
    enlarged = [
        Image.fromarray((15.9375 * digit).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for digit in digits
    ]
    blurred = [Image.fromarray(x[0]).filter(ImageFilter.GaussianBlur(1.0)) for x in images]
    flat = images.reshape(n, -1)
    constant = rng.integers(0, 256, (n, 1, 1, 1), dtype=np.uint8)
    return {
        "digits": np.stack([np.asarray(x) for x in enlarged])[:, None],
        "upside down": images[:, :, ::-1].copy(),
        "blurred": np.stack([np.asarray(x) for x in blurred])[:, None],
        "shuffled pixels": rng.permuted(flat, axis=1).reshape(images.shape),
        "uniform noise": rng.integers(0, 256, images.shape, dtype=np.uint8),
        "constant": np.broadcast_to(constant, images.shape).copy(),
    }


if __name__ == "__main__":
    main()
