"""The figure of docs/compare.md, from what `vdm compare a b --table bits.csv` wrote.

python benchmarks/compare.py bits.csv figure.png
"""

import csv
import math
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

NAMES = {"a": ("300 steps", "#0072b2"), "b": ("600 steps", "#d55e00")}


def plus_minus(bits: np.ndarray) -> str:
    error = bits.std(ddof=1) / math.sqrt(len(bits))
    return f"{bits.mean():.3f} ± {error:.3f}".replace("-", "−")


def main() -> None:
    source, target = sys.argv[1:]
    with Path(source).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    bits = {name: np.array([float(row[name]) for row in rows]) for name in NAMES}
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    for name, (label, colour) in NAMES.items():
        left.hist(bits[name], np.linspace(1.2, 2.9, 35), alpha=0.55, color=colour, label=label)
    left.set(xlabel="bits per dimension of each test example", ylabel="examples")
    left.legend(frameon=False)
    left.set_title("alone: " + " and ".join(map(plus_minus, bits.values())), fontsize=10)
    right.hist(bits["b"] - bits["a"], 30, color="#009e73", alpha=0.8)
    right.axvline(0, color="#767676", linestyle="--", linewidth=1)
    right.set(xlabel="difference for each test example, bits/dim")
    right.set_title(f"in pairs: {plus_minus(bits['b'] - bits['a'])}", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
