"""What a condition is worth: agreement of samples with their labels, likelihoods, classification.

    vdm train fashion-mnist --condition label --run runs/labels --steps 4000
    python benchmarks/guidance.py runs/labels

The samples' labels take turns. A classifier, trained on the training images apart from the model,
says how many of them look like what was asked for; beside it stands its accuracy on test images,
which samples of the data's own distribution would have. It is larger than the one whose features
`vdm quality` takes, and right on 92.3 % of Fashion-MNIST's test images instead of 87 %.
"""

from __future__ import annotations

import math
from typing import Any

import click
import numpy as np
import torch
from common import device_of, log_option, markdown, report, threads_option
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from variational_diffusion.cli.shared.sampling import sampling_options
from variational_diffusion.conditions import parted
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.loader import batch_positions, ordered_batches
from variational_diffusion.likelihood import ContinuousBound, evaluate_rounds
from variational_diffusion.likelihood.classification import class_bounds, labels_of, probabilities
from variational_diffusion.quality.features import in_unit_range
from variational_diffusion.run.conditions import Given
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import chosen_examples
from variational_diffusion.run.samples import draw, sampling_of
from variational_diffusion.run.trained import Trained


@click.command()
@click.argument("run")
@click.option("--n", "count", type=click.IntRange(10), default=1000, show_default=True)
@click.option("--guidance", "weights", type=float, multiple=True, default=(1.0, 2.0))
@click.option("--limit", type=click.IntRange(2), default=1000, help="Images for the likelihood.")
@click.option("--classified", type=click.IntRange(2), default=200, help="Images to classify.")
@click.option("--draws", type=click.IntRange(1), default=16, help="Of an image and class.")
@click.option("--classifier-steps", type=click.IntRange(1), default=3000, show_default=True)
@sampling_options
@threads_option
@log_option
def main(
    run: str,
    count: int,
    weights: tuple[float, ...],
    limit: int,
    classified: int,
    draws: int,
    classifier_steps: int,
    threads: int,
    log: bool,
    **options: Any,
) -> None:
    """Measure what a RUN with labels makes of them."""
    device = device_of(threads)
    opened = Run.open(run)
    vdm = opened.load().to(device)
    names = labels_of(vdm).names
    dataset = open_dataset(opened.config.data).labelled(names)
    rows: list[list[object]] = []

    judge = trained(dataset.splits["train"], classifier_steps)
    right = [
        (judge(x).argmax(1) == label).float()
        for x, label in map(parted, ordered_batches(dataset.splits["test"], 500))
    ]
    rows.append(["the classifier apart, test images", share(torch.cat(right))])
    click.echo(markdown(["", ""], rows), err=True)
    for weight in weights:
        asked = torch.arange(count) % len(names)
        by = sampling_of(Trained(opened, "ema", vdm), **options)
        given = Given(asked, weight)
        samples, _ = draw(by, count, seed=0, given=given)
        with torch.no_grad():
            parts = torch.from_numpy(samples).split(500)
            taken = torch.cat([judge(part).argmax(1) for part in parts])
        agree = (taken == asked).float()
        rows.append([f"samples that it takes for their label, guidance {weight:g}", share(agree)])
        worst = min(range(len(names)), key=lambda k: float(agree[asked == k].mean()))
        of_worst = float(agree[asked == worst].mean())
        rows.append([f"the same, the worst class ({names[worst]})", f"{of_worst:.1%}"])
        click.echo(markdown(["", ""], rows[-2:]), err=True)

    own, none = (
        evaluate_rounds(
            vdm,
            chosen_examples(opened, None, "test", limit, condition=condition),
            ContinuousBound(8),
        ).summary
        for condition in ("own", "none")
    )
    for name, summary in (("given the label", own), ("without it", none)):
        figure = f"{summary.bits_per_dim:.4f} ± {summary.draws_error:.4f}"
        rows.append([f"bits/dim of {limit} test images {name}, ± by the draws", figure])

    found = []
    for b, batch in enumerate(ordered_batches(dataset.splits["test"].sample(classified), 100)):
        x, label = parted(batch)
        bounds = class_bounds(vdm, x.to(device), ContinuousBound(draws), seed=b).cpu()
        found.append(
            (probabilities(bounds, labels_of(vdm).shares.cpu()).argmax(1) == label).float()
        )
    rows.append([f"vdm classify, {classified} test images, {draws} draws", share(torch.cat(found))])
    title = f"{count} samples, {by.name}, {options['steps']} steps"
    report(markdown([title, ""], rows), log=log)


class Judge(nn.Module):
    """A classifier of images: five convolutions, of which two halve the image.

    shape: (channels, height, width). levels: of the data.
    """

    def __init__(self, shape: tuple[int, ...], levels: int | None, classes: int) -> None:
        super().__init__()
        self.levels = levels
        channels, height, width = shape
        places = -(-height // 4) * -(-width // 4)
        self.layers = nn.Sequential(
            *convolution(channels, 32),
            *convolution(32, 64, stride=2),
            *convolution(64, 64),
            *convolution(64, 128, stride=2),
            *convolution(128, 128),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(128 * places, classes),
        )

    def forward(self, examples: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits of examples as the data set has them."""
        return self.layers(in_unit_range(examples, self.levels))


def convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return [layer, nn.GroupNorm(8, after), nn.ReLU()]


def trained(split: Split, steps: int) -> Judge:
    """Return a classifier of the split's labels."""
    assert split.conditions is not None
    labels = torch.from_numpy(split.conditions[split.indices].astype(np.int64))
    torch.manual_seed(0)
    judge = Judge(split.shape, split.levels, int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        positions = batch_positions(len(split), min(64, len(split)), 0, step)
        x = split.__getitems__(positions)
        loss = cross_entropy(judge(x), labels[positions])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            click.echo(f"classifier: step {step} of {steps}, loss {loss:.3f}", err=True)
    return judge.eval().requires_grad_(False)


def share(right: torch.Tensor) -> str:
    """Return a share with its standard error."""
    p = float(right.mean())
    return f"{p:.1%} ± {math.sqrt(p * (1 - p) / len(right)):.1%}"


if __name__ == "__main__":
    main()
