"""Estimators in scikit-learn's sense: the density of rows of numbers, and outliers by it.

    from variational_diffusion.sklearn import VDMDensity

    density = VDMDensity(random_state=0).fit(X)
    density.score_samples(X)  # log p of every row, in nats, in the units of X

Both estimators pass `sklearn.utils.estimator_checks.check_estimator`. The rest of the
package does not import this module, and `import variational_diffusion` does not import
scikit-learn.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from variational_diffusion import flow
from variational_diffusion.anomaly.conformal import (
    FalseAlarms,
    calibration_needed,
    check_rate,
    false_alarms,
    threshold,
)
from variational_diffusion.config import Component, ModelConfig, TrainingConfig
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.data.loader import batch_positions
from variational_diffusion.data.reals import RealValues, constant_columns, real_values
from variational_diffusion.data.source import Split
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM, build
from variational_diffusion.presets import parts
from variational_diffusion.training import TrainingState, fit

Rows = Any
"""What scikit-learn takes for rows: an array, a list of lists, a data frame; shape (n, d)."""

RandomState = int | np.random.RandomState | None
"""A seed, a source of random numbers, or None for numpy's global one."""

EXACT_FEATURES = 64
"""Features up to which the divergence of the flow is exact. Its cost grows with their number."""

PROBES = 16
"""Rademacher probes of the divergence for more features than these, the same for every row."""

_CHECKS = 20  # of the held-out rows, over the budget of steps
_STEPS_BETWEEN = 25  # two checks, or more
_PATIENCE = 5  # checks without a better one, in the second half of the budget
_MEASURED = 256  # held-out rows in a check
_CHECK_SOLVER_STEPS = 16  # at most, where only the number of steps is chosen
_TOGETHER = 1024  # rows that go through the solver together
_FOLDS = 5
_SHRINKAGES = np.geomspace(1e-6, 1.0, 25)
_DEPENDENT = 1e-10  # variance of a combination of standardised columns that rounding explains
_LARGEST_SEED = 2**31 - 1


class VDMDensity(DensityMixin, BaseEstimator):
    """A density of rows of real numbers by a variational diffusion model.

    `fit` learns the mean and the covariance of the rows first, then trains a small network on rows
    that are whitened by them. An untrained network is the normal distribution, so training starts
    from the best normal distribution and learns what is not normal. A share of the rows is held
    out to choose the number of training steps; then all rows are trained on for that many steps.

    `score_samples` is the log-density of the probability-flow ODE. It is deterministic, and the
    value of a row does not depend on the other rows.

    Args:
        steps: Largest number of training steps. Fewer are taken where the held-out rows say so.
        width: Width of the network, a residual multi-layer perceptron.
        blocks: Number of its residual blocks.
        dropout: Share of hidden units that are left out in a step, in [0, 1).
        learning_rate: Of the network's matrices, by Muon.
        batch_size: Rows in a step, drawn without replacement until all had their turn.
        validation_fraction: Share of the rows that choose the number of steps, in (0, 1).
        solver_steps: Equal steps in γ of the probability-flow ODE, for densities and for samples
            (docs/sklearn.md says how exact 32 are).
        random_state: Seed of the held-out rows, the initial weights, the batches and the noise.
            With a whole number, the same rows give the same estimator on one machine.

    Attributes:
        model_: The `VDM` of whitened rows, in float64.
        gaussian_: The normal distribution that rows are whitened by.
        n_iter_: Number of training steps of the model. 0 means: it is the normal distribution.
        validation_scores_: Mean log-density of the held-out rows before the first step and at
            every check, in nats in the units of X, shape (checks + 1,).
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, where X had them.

    Examples:
        >>> import numpy as np
        >>> from variational_diffusion.sklearn import VDMDensity
        >>> X = np.random.default_rng(0).normal(5, 2, size=(200, 1))
        >>> density = VDMDensity(steps=40, random_state=0).fit(X)
        >>> near, far = density.score_samples([[5.0], [20.0]])
        >>> bool(near > far)
        True
    """

    model_: VDM
    gaussian_: Gaussian
    n_iter_: int
    validation_scores_: np.ndarray
    n_features_in_: int
    steps: int
    width: int
    blocks: int
    dropout: float
    learning_rate: float
    batch_size: int
    validation_fraction: float
    solver_steps: int
    random_state: RandomState

    @no_type_check  # scikit-learn: any value may be given here, and `fit` looks at it
    def __init__(
        self,
        *,
        steps: int = 1000,
        width: int = 64,
        blocks: int = 2,
        dropout: float = 0.1,
        learning_rate: float = 0.015,
        batch_size: int = 128,
        validation_fraction: float = 0.2,
        solver_steps: int = 32,
        random_state: RandomState = None,
    ) -> None:
        self.steps = steps
        self.width = width
        self.blocks = blocks
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.solver_steps = solver_steps
        self.random_state = random_state

    def fit(self, X: Rows, y: object = None) -> VDMDensity:
        """Learn the density of the rows of X.

        Args:
            X: Rows of finite real numbers, shape (n, d), n of 2 or more.
            y: Ignored.

        Returns:
            This estimator.

        Raises:
            InputError: A ValueError, for a parameter that is out of range and for a column with
                one value in all rows. scikit-learn raises its own ValueError for X that is not
                such an array.

        Warns:
            UserWarning: Values repeat, rows are copies, digits were lost, or columns depend on
                each other linearly. Such data have no density (docs/arrays.md).
        """
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._learn(rows, _seed(self.random_state))
        return self

    def score_samples(self, X: Rows) -> np.ndarray:
        """Return the log-density of every row.

        Args:
            X: Rows, shape (n, d).

        Returns:
            log p in nats, in the units of X, shape (n,).
        """
        check_is_fitted(self)
        return self._log_density(validate_data(self, X, dtype=np.float64, reset=False))

    def score(self, X: Rows, y: object = None) -> float:
        """Return the mean log-density of the rows.

        It is the mean, as of GaussianMixture, and not the sum, as of KernelDensity: so scores of
        different numbers of rows compare, and GridSearchCV weights its folds alike.

        Args:
            X: Rows, shape (n, d).
            y: Ignored.

        Returns:
            Mean of `score_samples`, in nats per row. Higher is better.
        """
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Draw new rows.

        Args:
            n_samples: How many, 1 or more.
            random_state: Seed of the draw; None: other rows in every call.

        Returns:
            Rows in the units of X, float64, shape (n_samples, d).

        Raises:
            InputError: n_samples is not a whole number of 1 or more.
        """
        check_is_fitted(self)
        n = _whole("n_samples", n_samples)
        generator = torch.Generator().manual_seed(_seed(random_state))
        whitened = self.model_.sample(n, steps=self.solver_steps, generator=generator)
        return self.gaussian_.restore(whitened.numpy())

    def _learn(self, rows: np.ndarray, seed: int) -> None:
        share = self.validation_fraction
        if not 0 < share < 1:
            raise InputError(f"validation_fraction = {share}: give a share between 0 and 1")
        solver_steps = min(_whole("solver_steps", self.solver_steps), _CHECK_SOLVER_STEPS)
        values = _looked_at(rows)
        self.gaussian_ = Gaussian.of(rows, values, seed)
        whitened = torch.from_numpy(self.gaussian_.whiten(rows))
        model, training = self._configured(rows.shape[1], values.least_gamma, seed)
        order = np.random.default_rng(seed).permutation(len(rows))
        held_out, rest = np.split(order, [math.ceil(share * (len(rows) - 1))])
        self.n_iter_, means = _best_number_of_steps(
            whitened[rest], whitened[held_out], model, training, solver_steps
        )
        self.validation_scores_ = self.gaussian_.log_det + np.array(means)
        self.model_ = _trained(whitened, self.n_iter_, model, training)

    def _configured(self, d: int, floor: float, seed: int) -> tuple[ModelConfig, TrainingConfig]:
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout = {self.dropout}: give a share of 0 or more and less than 1")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate = {self.learning_rate}: give a number above 0")
        return parts(
            (d,),
            None,
            Component(name="gaussian", options={"location": 0.0, "scale": 1.0}),
            floor=floor,
            preset="vector",
            settings={
                "network.width": _whole("width", self.width),
                "network.blocks": _whole("blocks", self.blocks),
                "network.dropout": float(self.dropout),
                "training.steps": _whole("steps", self.steps),
                "training.batch_size": _whole("batch_size", self.batch_size),
                "training.matrix_learning_rate": float(self.learning_rate),
                "training.seed": seed,
                "training.posthoc_ema": False,
            },
        )

    def _log_density(self, rows: np.ndarray) -> np.ndarray:
        whitened = torch.from_numpy(self.gaussian_.whiten(rows))
        pieces = whitened.split(_TOGETHER)
        log_p = [_log_density(self.model_, part, self.solver_steps) for part in pieces]
        return torch.cat(log_p).numpy() + self.gaussian_.log_det


class VDMOutliers(OutlierMixin, VDMDensity):
    """Outliers: rows whose density is lower than that of nearly all rows of the training kind.

    A share of the rows is set aside before the density is learned. Their densities say how low is
    rare. A new row of the same distribution is called an outlier with a probability of at most
    `false_alarms`, whatever the distribution and however well the density fits (split conformal
    inference, docs/anomalies.md).

    There is no parameter `contamination`. It would be the share of the training rows to call
    outliers, and this estimator makes its promise for new rows. Of the training rows themselves,
    fewer are called outliers, because the density was learned from them.

    Args:
        false_alarms: Largest probability to call an ordinary new row an outlier, in (0, 1).
        calibration_fraction: Share of the rows that is set aside, in (0, 1). More are set aside
            where `false_alarms` needs them (19 for 0.05, 99 for 0.01), but at most half.
        steps: See `VDMDensity`, as for the other parameters and attributes.

    Attributes:
        offset_: Log-density below which a row is an outlier. −inf where too few rows were set
            aside to call any row an outlier.
        false_alarms_: Rate of false alarms: its mean over draws of the rows set aside, and the
            range of 95 % of these draws.

    Examples:
        >>> import numpy as np
        >>> from variational_diffusion.sklearn import VDMOutliers
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> outliers = VDMOutliers(steps=40, random_state=0).fit(X)
        >>> outliers.predict([[0.0, 0.0], [9.0, 9.0]])
        array([ 1, -1])
    """

    offset_: float
    false_alarms_: FalseAlarms
    false_alarms: float
    calibration_fraction: float

    @no_type_check  # as above
    def __init__(
        self,
        *,
        false_alarms: float = 0.05,
        calibration_fraction: float = 0.25,
        steps: int = 1000,
        width: int = 64,
        blocks: int = 2,
        dropout: float = 0.1,
        learning_rate: float = 0.015,
        batch_size: int = 128,
        validation_fraction: float = 0.2,
        solver_steps: int = 32,
        random_state: RandomState = None,
    ) -> None:
        super().__init__(
            steps=steps,
            width=width,
            blocks=blocks,
            dropout=dropout,
            learning_rate=learning_rate,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            solver_steps=solver_steps,
            random_state=random_state,
        )
        self.false_alarms = false_alarms
        self.calibration_fraction = calibration_fraction

    def fit(self, X: Rows, y: object = None) -> VDMOutliers:
        """Learn the density from a part of the rows, and what is rare from the others.

        Args:
            X: Rows of finite real numbers, shape (n, d), n of 4 or more.
            y: Ignored.

        Returns:
            This estimator.

        Raises:
            InputError: As in `VDMDensity.fit`.

        Warns:
            UserWarning: As in `VDMDensity.fit`, and where too few rows could be set aside.
        """
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=4)
        needed = calibration_needed(self.false_alarms)
        share = self.calibration_fraction
        check_rate("calibration_fraction", share)
        count = min(max(math.ceil(share * len(rows)), needed), len(rows) // 2)
        if count < needed:
            warnings.warn(
                f"false_alarms = {self.false_alarms}: {needed} rows have to be set aside, and half "
                f"of {len(rows)} are {count}, so no row is called an outlier; give more rows, or "
                f"false_alarms of {1 / (count + 1):.2g} or more",
                UserWarning,
                stacklevel=2,
            )
        seed = _seed(self.random_state)
        order = np.random.default_rng([seed, 1]).permutation(len(rows))
        self._learn(rows[order[count:]], seed)
        anomaly = -self._log_density(rows[order[:count]])
        self.offset_ = -threshold(anomaly, self.false_alarms)
        self.false_alarms_ = false_alarms(count, self.false_alarms)
        return self

    def decision_function(self, X: Rows) -> np.ndarray:
        """Return by how much the log-density of every row is above the threshold.

        Args:
            X: Rows, shape (n, d).

        Returns:
            score_samples(X) − offset_ in nats, shape (n,). Outliers are below zero.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Rows) -> np.ndarray:
        """Tell which rows are outliers.

        Args:
            X: Rows, shape (n, d).

        Returns:
            −1 for an outlier and 1 for any other row, shape (n,).
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution of rows, and rows whitened by it: uncorrelated, with variance 1.

    mean: shape (d,). directions: row = mean + whitened @ directions, shape (d, d). inverse: of
    directions. log_det: −log |det directions|, what whitening adds to a log-density.
    """

    mean: np.ndarray
    directions: np.ndarray
    inverse: np.ndarray
    log_det: float

    @classmethod
    def of(cls, rows: np.ndarray, values: RealValues, seed: int) -> Gaussian:
        """Return the one with the rows' mean and covariance, shrunk towards independent columns.

        The covariance of standardised columns is (1 − s) C + s I. The s is the one with the best
        likelihood of rows that were left out, five times a fifth of them. So it is next to zero for
        many rows, and there is one for fewer rows than columns.
        """
        standard = (rows - values.location) / values.scale
        n, d = standard.shape
        fold = np.random.default_rng(seed).permutation(n) % _FOLDS
        gains = [_fit_of_others(standard, fold == k) for k in range(min(_FOLDS, n))]
        s = _SHRINKAGES[np.argmax(np.sum(gains, axis=0))]
        variances, axes = np.linalg.eigh(standard.T @ standard / n)
        dependent = int((variances < _DEPENDENT).sum())
        if dependent and n > d:
            warnings.warn(
                f"{dependent} of {d} columns follow from the others linearly: such rows have no "
                "density, and the value only says how narrow the model became; leave them out",
                UserWarning,
                stacklevel=4,
            )
        spread = np.sqrt(_shrunk(variances, s))
        return cls(
            mean=values.location,
            directions=(axes * spread).T * values.scale,
            inverse=axes / spread / values.scale[:, None],
            log_det=float(-np.log(spread).sum() - np.log(values.scale).sum()),
        )

    def whiten(self, rows: np.ndarray) -> np.ndarray:
        """Return rows as uncorrelated numbers of variance 1, shape (n, d)."""
        return (rows - self.mean) @ self.inverse

    def restore(self, whitened: np.ndarray) -> np.ndarray:
        """Return rows of whitened numbers, shape (n, d): the inverse of `whiten`."""
        return self.mean + whitened @ self.directions


def _fit_of_others(standard: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Return log-likelihoods of the rows left out, for every shrinkage, up to a constant."""
    kept = standard[~left_out]
    mean = kept.mean(0)
    variances, axes = np.linalg.eigh((kept - mean).T @ (kept - mean) / len(kept))
    squares = (((standard[left_out] - mean) @ axes) ** 2).sum(0)
    shrunk = _shrunk(variances, _SHRINKAGES[:, None])
    return -0.5 * (left_out.sum() * np.log(shrunk) + squares / shrunk).sum(1)


def _shrunk(variances: np.ndarray, s: np.ndarray | float) -> np.ndarray:
    return (1 - s) * np.maximum(variances, 0) + s


def _looked_at(rows: np.ndarray) -> RealValues:
    """Return what the values are; refuse constant columns, warn of what has no density."""
    found = real_values(Split(ArraySource(rows, "X"), np.arange(len(rows))))
    found = replace(found, levels=None)  # whole numbers too are asked for a density here
    if len(found.constant):
        raise InputError(f"X: {constant_columns(found)}")
    for note in found.notes():
        warnings.warn(f"X: {note}", UserWarning, stacklevel=4)
    return found


def _batches(rows: Tensor, config: TrainingConfig) -> Iterator[Tensor]:
    for k in itertools.count():
        yield rows[batch_positions(len(rows), config.batch_size, config.seed, k)]


def _best_number_of_steps(
    rows: Tensor,
    held_out: Tensor,
    model: ModelConfig,
    config: TrainingConfig,
    solver_steps: int,
) -> tuple[int, list[float]]:
    """Return after how many steps held-out rows have the highest mean log-density; all means."""
    assert config.steps is not None
    state = TrainingState.start(build(model, seed=config.seed), config)
    every = max(_STEPS_BETWEEN, config.steps // _CHECKS)
    held_out = held_out[:_MEASURED]
    steps = [0]
    means = [-0.5 * float((held_out.square() + math.log(2 * math.pi)).sum(1).mean())]
    for record in fit(state, _batches(rows, config), config):
        if record.step % every and record.step < config.steps:
            continue
        now = copy.deepcopy(state.average.module).double().eval()
        steps.append(record.step)
        means.append(float(_log_density(now, held_out, solver_steps).mean()))
        best = steps[int(np.argmax(means))]
        if record.step >= max(config.steps / 2, best + _PATIENCE * every):
            break
    return best, means


def _trained(rows: Tensor, steps: int, model: ModelConfig, config: TrainingConfig) -> VDM:
    """Return the model after so many steps, in float64, with averaged weights."""
    state = TrainingState.start(build(model, seed=config.seed), config)
    for _ in itertools.islice(fit(state, _batches(rows, config), config), steps):
        pass
    return state.average.module.double().eval()


def _log_density(vdm: VDM, u: Tensor, steps: int) -> Tensor:
    """Return log p(u) by the probability-flow ODE, each row by itself, shape (n,)."""
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    divergence: flow.Divergence = flow.ExactDivergence()
    d = vdm.dimensions
    if d > EXACT_FEATURES:
        probes = flow.rademacher(PROBES, u[:1], torch.Generator().manual_seed(d))
        divergence = flow.Hutchinson(probes.expand(PROBES, *u.shape))
    alpha = torch.sigmoid(-gamma_0).sqrt()
    log_p, _ = flow.log_prob(vdm, alpha * u, gamma_0, gamma_1, divergence, steps=steps)
    return log_p.mean(0) + d * alpha.log()


def _seed(random_state: RandomState) -> int:
    return int(check_random_state(random_state).randint(_LARGEST_SEED))


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} = {value!r}: give a whole number of 1 or more")
    return int(value)
