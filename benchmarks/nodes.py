"""Step time against the number of devices, simulated, and the sharding to choose at each number.

    python benchmarks/nodes.py [--hardware h100] [--no-write]

Operations and memory of a step are counted (`run.plan`), rates and bandwidths are
those of `HARDWARE` and of cluster.py, which has the closed forms of exchanges as well. Once with
the same batch on every device however many there are, once with the same batch on all together, in
bfloat16. The tables go into docs/scaling.md between its marks, the figure beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
from cluster import CLUSTERS, Blocks, Cluster, Simulated, blocks_of, recommended
from common import markdown
from matplotlib.figure import Figure

from variational_diffusion.config import Component, ModelConfig, TrainingConfig
from variational_diffusion.presets import parts
from variational_diffusion.report.figures import save_figure
from variational_diffusion.run.plan import Footprint, footprint

DOCS = Path(__file__).parents[1] / "docs"
FIGURE = "figures/nodes.png"
MARKS = "<!-- nodes: begin -->", "<!-- nodes: end -->"
DEVICES = [2**i for i in range(11)]
LARGE = {
    "network.widths": [448, 896, 1792, 1792],
    "network.blocks": 3,
    "training.optimizer": "adamw",  # docs/scaling.md says what Muon would cost
}
HUGE = {**LARGE, "network.widths": [896, 1792, 3584, 3584]}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, the batch of a device in the first simulation, and that of all in the second."""

    name: str
    preset: str
    shape: tuple[int, int, int]
    settings: dict[str, Any]
    each: int
    together: int

    def configured(self) -> tuple[ModelConfig, TrainingConfig]:
        return parts(
            self.shape,
            256,
            Component(name="discretized", options={"levels": 256}),
            preset=self.preset,
            settings={"training.steps": 1, **self.settings},
        )


@cache
def step_of(case: Case, batch: int) -> tuple[Footprint, Blocks]:
    """Return what a step of a case takes in one device; counted once for each batch."""
    model, training = case.configured()
    step = footprint(model, training, batch, precision="bfloat16", on_cpu=False)
    return step, blocks_of(model)


CASES = [
    Case("gpu, 32×32", "gpu", (3, 32, 32), {}, each=128, together=4096),
    Case("paper, 32×32", "paper", (3, 32, 32), {}, each=64, together=2048),
    Case("a U-Net of 10⁹, 64×64", "gpu", (3, 64, 64), LARGE, each=32, together=1024),
    Case("a U-Net of 4 · 10⁹, 64×64", "gpu", (3, 64, 64), HUGE, each=16, together=1024),
]


def simulated(case: Case, cluster: Cluster) -> list[tuple[Simulated, Simulated]]:
    """Return the best estimates for every number of devices: the batch of each or of all fixed."""
    found = []
    for devices in DEVICES:
        grown = recommended(*step_of(case, case.each), cluster, devices=devices)
        # a device takes what it has room for at once, in as many passes as that needs
        share = case.together // devices
        size = min(share, case.each)
        fixed = recommended(*step_of(case, size), cluster, devices=devices, passes=share // size)
        found.append((grown, fixed))
    return found


def efficiency(found: Sequence[Simulated]) -> list[float | None]:
    """Return the speed of a device, relative to that on the fewest devices on which it fits."""
    first = next(estimate for estimate in found if estimate.fits)
    rate = first.images_per_second / first.devices
    return [e.images_per_second / e.devices / rate if e.fits else None for e in found]


def table(case: Case, found: list[tuple[Simulated, Simulated]]) -> str:
    grown, fixed = zip(*found, strict=True)
    rows: list[list[object]] = []
    for one, one_share, other, other_share in zip(
        grown, efficiency(grown), fixed, efficiency(fixed), strict=True
    ):
        rows.append(
            [
                one.devices,
                *_cells(one, one_share),
                f"{one.memory / 2**30:.1f}",
                f"{other.passes} × {other.batch}",
                *_cells(other, other_share),
            ]
        )
    header = ["devices", f"ms, {case.each} images each", "efficiency", "sharding", "GiB a device"]
    header += [f"{case.together} images in all", "ms", "efficiency", "sharding"]
    step, _ = step_of(case, case.each)
    title = (
        f"**{case.name}**: {step.parameters / 1e6:,.1f} M parameters, "
        f"{step.training_flops / 1e9:,.0f} GFLOP an image"
    )
    return f"{title}\n\n{markdown(header, rows)}"


def _cells(estimate: Simulated, share: float | None) -> list[str]:
    if share is None:
        return ["", "", "does not fit"]
    return [f"{1000 * estimate.seconds:.1f}", f"{share:.0%}", estimate.sharding]


def draw(found: dict[str, list[tuple[Simulated, Simulated]]], path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for case in CASES:
        grown, fixed = zip(*found[case.name], strict=True)
        axes[0].plot(DEVICES, efficiency(grown), "o-", ms=3, label=f"{case.name}: {case.each}")
        axes[1].plot(DEVICES, efficiency(fixed), "o-", ms=3, label=f"{case.together}")
    axes[0].set(title="the same batch on every device", ylabel="efficiency")
    axes[1].set(title="the same batch on all together")
    axes[0].legend(loc="lower left", fontsize=8, title="images a device")
    axes[1].legend(loc="lower left", fontsize=8, title="images in all")
    for axis in axes:
        axis.set(xscale="log", xlabel="devices", ylim=(0, 1.05))
        axis.set_xticks(DEVICES[::2], [f"{n:,}" for n in DEVICES[::2]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    save_figure(
        figure, path, "efficiency of training against the number of devices", overwrite=True
    )


@click.command()
@click.option("--hardware", "name", type=click.Choice(list(CLUSTERS)), default="h100")
@click.option("--write/--no-write", default=True, help="Write into docs/scaling.md.")
def main(name: str, write: bool) -> None:
    """Simulate all cases on one kind of hardware."""
    found = {case.name: simulated(case, CLUSTERS[name]) for case in CASES}
    text = "\n\n".join(table(case, found[case.name]) for case in CASES)
    print(text)
    if write:
        draw(found, DOCS / FIGURE)
        page = DOCS / "scaling.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        page.write_text(
            f"{before}{MARKS[0]}\n\n{text}\n\n![efficiency against devices]({FIGURE})\n\n"
            f"{MARKS[1]}{after}",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
