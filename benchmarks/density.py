"""Held-out log-density of tables: VDMDensity, kernel density estimation and Gaussian mixtures.

    python benchmarks/density.py --data breast-cancer wine diabetes swiss-roll --splits 1

A quarter of the rows is held out. Columns are standardised by the others. The kernel's bandwidth,
and the number and kind of the mixture's components, are the best of a grid by cross-validation on
the training rows; VDMDensity has its defaults. Nats a row, of standardised columns; higher is
better.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine, make_swiss_roll
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from variational_diffusion.sklearn import VDMDensity

DATA: dict[str, Callable[[], np.ndarray]] = {
    "breast-cancer": lambda: load_breast_cancer().data,
    "wine": lambda: load_wine().data,
    "diabetes": lambda: np.delete(load_diabetes().data, 1, axis=1),  # but the sex
    "swiss-roll": lambda: make_swiss_roll(1000, noise=0.2, random_state=0)[0],
}


def kernel() -> GridSearchCV:
    """Return kernel density estimation with the best bandwidth."""
    return GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.03, 2, 15)})


def mixture() -> GridSearchCV:
    """Return the best Gaussian mixture."""
    grid = {
        "n_components": [1, 2, 3, 5, 8, 12, 20, 40],
        "covariance_type": ["full", "tied", "diag"],
    }
    model = GaussianMixture(n_init=2, reg_covar=1e-5, random_state=0)
    return GridSearchCV(model, grid, error_score=-np.inf)


MODELS: dict[str, Callable[[], object]] = {
    "kernel": kernel,
    "mixture": mixture,
    "normal": lambda: GaussianMixture(1),
    "vdm": lambda: VDMDensity(random_state=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # of ties; of mixtures with more components than rows
    for name in arguments.data:
        rows = DATA[name]()
        for split in range(arguments.splits):
            train, test = train_test_split(rows, test_size=0.25, random_state=split)
            scaler = StandardScaler().fit(train)
            train, test = scaler.transform(train), scaler.transform(test)
            for model in arguments.models:
                start = time.process_time()
                estimator = MODELS[model]().fit(train)
                best = getattr(estimator, "best_estimator_", estimator)
                score = best.score_samples(test).mean()
                seconds = time.process_time() - start
                steps = f", {best.n_iter_} steps" if model == "vdm" else ""
                print(
                    f"{name} {train.shape}, split {split}: {model} {score:.2f} nats, "
                    f"{seconds:.0f} s of CPU{steps}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
