"""Which measures of quality notice what is wrong with images, in which features.

    python benchmarks/quality.py fashion-mnist

Validation images, as they are and with something done to them, are compared with test images.
Beside each value stands by how many standard errors it is above that of the untouched images. The
last two sets lack classes.
"""

from __future__ import annotations

import click
import numpy as np
from common import device_of, log_option, markdown, report, threads_option
from scipy.ndimage import gaussian_filter

from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.quality import (
    Estimate,
    Features,
    Pixels,
    Reference,
    combined,
    fit_classifier,
    labels_of,
    new_classifier,
)

FEATURES = ["untrained", "turns", "labels", "pixels"]


@click.command()
@click.argument("data")
@click.option("--n", "count", type=click.IntRange(40), default=1000, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=1500, show_default=True)
@click.option(
    "--features",
    "wanted",
    multiple=True,
    type=click.Choice(FEATURES),
    default=FEATURES,
    help="Default: all.",
)
@threads_option
@log_option
def main(
    data: str, count: int, steps: int, wanted: tuple[str, ...], threads: int, log: bool
) -> None:
    """Compare the measures on DATA, which has labels."""
    device_of(threads, "cpu")
    config = DataConfig(source=data)
    splits = open_dataset(config).splits
    train, levels = splits["train"], splits["train"].levels
    labels, of_images = (labels_of(config, name) for name in ("train", "validation"))
    if labels is None or of_images is None or levels is None:
        raise click.UsageError(f"data = '{data}': give integers with labels")
    known: dict[str, Features] = {"pixels": Pixels(levels)}
    for name in (name for name in wanted if name != "pixels"):
        targets = None if name == "turns" else labels
        known[name] = classifier = new_classifier(train, targets)
        if name != "untrained":
            right = list(fit_classifier(classifier, train, targets, steps=steps))
            print(f"{name}: {np.mean(right[-100:]):.1%} of the last batches right", flush=True)

    order = np.random.default_rng(0).permutation(len(splits["test"]))[:count]
    examples = splits["test"].read(order)
    images = splits["validation"].read()
    sets = {"untouched": images[:count]}
    sets |= {name: change(images[:count], levels) for name, change in CHANGES.items()}
    for missing in (1, len(set(labels.tolist())) // 2):
        sets[f"classes missing: {missing}"] = images[of_images >= missing][:count]

    rows: list[list[object]] = []
    for name in wanted:
        reference = Reference(examples, known[name], levels=levels)
        base = reference.distances(sets["untouched"])
        for change, changed in sets.items():
            found = reference.distances(changed)
            kept = [measure for measure in found if name == "pixels" or measure[:2] != "SW"]
            rows += [
                [name, measure, change, *shown(found[measure], base[measure])] for measure in kept
            ]
            print(*rows[-len(kept) :], sep="\n", flush=True)
    table: dict[tuple[str, str], list[object]] = {}
    for name, measure, _, value, above in rows:
        table.setdefault((str(name), str(measure)), [name, measure]).append(f"{value} ({above})")
    note = f"{data}, {count} images, {steps} steps of training"
    report(f"{note}\n\n{markdown(['features', 'measure', *sets], list(table.values()))}", log=log)


def noise(images: np.ndarray, levels: int, share: float) -> np.ndarray:
    """Add Gaussian noise with this share of the range as its standard deviation."""
    drawn = np.random.default_rng(1).normal(0, share * (levels - 1), images.shape)
    return np.clip(np.rint(images + drawn), 0, levels - 1).astype(images.dtype)


def blur(images: np.ndarray, width: float) -> np.ndarray:
    """Blur by a Gaussian of this standard deviation in pixels."""
    blurred = gaussian_filter(images.astype(float), (0, 0, width, width))
    return np.rint(blurred).astype(images.dtype)


CHANGES = {
    "noise 1 %": lambda images, levels: noise(images, levels, 0.01),
    "noise 3 %": lambda images, levels: noise(images, levels, 0.03),
    "noise 10 %": lambda images, levels: noise(images, levels, 0.1),
    "blur 0.3": lambda images, levels: blur(images, 0.3),
    "blur 0.5": lambda images, levels: blur(images, 0.5),
    "blur 1": lambda images, levels: blur(images, 1),
    "shifted by one": lambda images, levels: np.roll(images, 1, axis=3),
    "darker by 10 %": lambda images, levels: np.rint(0.9 * images).astype(images.dtype),
}


def shown(found: Estimate, base: Estimate) -> tuple[str, str]:
    """Return a value, and by how many errors it is above the base's."""
    above = combined(lambda a, b: a - b, found, base)
    return f"{found.value:.4f}", "" if above.error == 0 else f"{above.value / above.error:+.1f}"


if __name__ == "__main__":
    main()
