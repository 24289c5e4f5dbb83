"""A small network that learns the features of a data set from that data set.

Where the examples have labels it learns to tell them apart, where they have none, how an image was
turned and mirrored (Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting
Image Rotations", 2018). Its features are what its last layer sees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from variational_diffusion.data import Split
from variational_diffusion.data.loader import batch_positions
from variational_diffusion.errors import InputError
from variational_diffusion.quality.features import in_unit_range
from variational_diffusion.storage.tensors import digest_of, read_tensors, write_tensors

STEPS = 1500
_BATCH = 64
_LEARNING_RATE, _WARMUP = 3e-3, 50
_SIDE = 8
"""Images are halved until they are at most this high and wide, and at least twice."""


class Classifier(nn.Module):
    """Convolutions, all but the last with stride 2, a mean over places, and a linear layer.

    It is a `Features`: called with examples, it returns what the linear layer sees.

    shape: (channels, height, width). levels: of the data; None: real values.
    """

    name = "classifier"

    def __init__(
        self, shape: tuple[int, ...], *, levels: int | None, classes: int, width: int = 64
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise InputError(
                f"features = 'classifier' take images, and the data have shape {tuple(shape)}; "
                "give --features pixels"
            )
        self.options = {"shape": tuple(shape), "levels": levels, "classes": classes, "width": width}
        self.levels = levels
        halvings = max(2, math.ceil(math.log2(max(shape[1:]) / _SIDE)))
        widths = [shape[0], width // 2, *[width] * halvings]
        strides = [2] * halvings + [1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for channels in widths[1:])
        self.last = nn.Linear(widths[-1], classes)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return digest_of(self.state_dict())

    def forward(self, examples: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        h = in_unit_range(examples.to(self.last.weight.device), self.levels)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = relu(norm(convolution(h)))
        return h.mean((2, 3))

    def logits(self, examples: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logarithms of the classes' probabilities, up to a constant."""
        return self.last(self(examples))


def new_classifier(split: Split, labels: np.ndarray | None) -> Classifier:
    """Return a classifier for a split's labels, or for turns where it has none, untrained."""
    classes = turns(split.shape) if labels is None else int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(split.shape, levels=split.levels, classes=classes)


def fit_classifier(
    classifier: Classifier,
    split: Split,
    labels: Int[np.ndarray, " n"] | None,
    *,
    steps: int = STEPS,
) -> Iterator[float]:
    """Train by AdamW with a falling rate; yield the share of each batch that it got right.

    labels: of the split's examples, from 0; None: turns are learned instead.
    """
    parameters = list(classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    size = min(_BATCH, len(split))
    for step in range(steps):
        positions = batch_positions(len(split), size, 0, step)
        examples = split.__getitems__(positions)
        if labels is None:
            examples, targets = turned(examples, generator)
        else:
            targets = torch.from_numpy(labels[positions].astype(np.int64))
        logits = classifier.logits(examples)
        targets = targets.to(logits.device)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1, (step + 1) / _WARMUP) * (1 - step / steps)
        optimizer.zero_grad()
        cross_entropy(logits, targets).backward()
        optimizer.step()
        yield float((logits.argmax(1) == targets).float().mean())


def turns(shape: tuple[int, ...]) -> int:
    """Return in how many ways an image can be turned and mirrored without changing its shape."""
    return 8 if shape[1] == shape[2] else 4


def turned(
    images: Shaped[Tensor, "n c h w"], generator: torch.Generator
) -> tuple[Shaped[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """Return images, each turned and mirrored at random, and by which of the ways."""
    ways = turns(tuple(images.shape[1:]))
    chosen = torch.randint(ways, (len(images),), generator=generator)
    result = images.clone()
    for way in range(ways):
        rows = images[chosen == way]
        rows = rows.flip(3) if way % 2 else rows
        result[chosen == way] = torch.rot90(rows, way // 2 * (8 // ways), (2, 3))
    return result, chosen


def save_classifier(path: Path, classifier: Classifier, **facts: str) -> None:
    """Write the weights, with what else is to be known of them."""
    header = {**facts, "options": json.dumps(classifier.options)}
    write_tensors(path, classifier.state_dict(), header)


def load_classifier(path: Path) -> Classifier:
    """Return what `save_classifier` wrote; raise InputError where it is damaged or another file."""
    tensors, header = read_tensors(path)
    if "options" not in header:
        raise InputError(f"'{path}' holds no classifier; give one that vdm quality wrote")
    options = json.loads(header["options"])
    classifier = Classifier(tuple(options.pop("shape")), **options)
    classifier.load_state_dict(tensors)
    return classifier.eval()
