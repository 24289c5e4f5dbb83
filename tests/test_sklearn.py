"""The estimators of scikit-learn's kind: its own checks, densities that are right, false alarms."""

import pickle
import subprocess
import sys
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from variational_diffusion import flow
from variational_diffusion.anomaly.conformal import p_values, threshold
from variational_diffusion.errors import InputError
from variational_diffusion.sklearn import (
    EXACT_FEATURES,
    Gaussian,
    VDMDensity,
    VDMOutliers,
    _log_density,
    _looked_at,
)

FAST = MappingProxyType({"steps": 3, "width": 8, "blocks": 1, "random_state": 0})


@pytest.fixture(scope="module")
def two_clusters():
    """Return a density of two clusters in one feature that was trained, and its rows."""
    rng = np.random.default_rng(0)
    rows = 10 + 3 * (rng.choice([-1.0, 1.0], (400, 1)) + 0.25 * rng.normal(size=(400, 1)))
    return VDMDensity(steps=200, width=32, random_state=0).fit(rows), rows


@pytest.mark.parametrize("kind", [VDMDensity, VDMOutliers])
def test_scikit_learn_checks_it(kind):
    """Every check passes; the one that is skipped asks for another environment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks fit whole numbers and a dozen rows
        results = check_estimator(kind(**FAST, solver_steps=2), on_fail="raise", on_skip=None)
    others = {each["check_name"] for each in results if each["status"] != "passed"}
    assert len(results) > 35
    assert others <= {"check_array_api_input"}


def test_a_density_has_mass_one_and_the_units_of_x(two_clusters):
    density, rows = two_clusters
    assert density.n_iter_ > 0
    grid = np.linspace(-15, 35, 1001)[:, None]
    p = np.exp(density.score_samples(grid))
    assert p.sum() * 0.05 == pytest.approx(1, abs=2e-3)
    # two clusters and little between them, which no normal distribution has
    assert density.score_samples([[7.0], [13.0]]).min() > density.score_samples([[10.0]]) + 1.5
    # the true density has a mean of −1.83; the best normal distribution −2.6
    truth = np.log(0.5 * sum(stats.norm.pdf(rows, 10 + 3 * s, 0.75) for s in (-1, 1))).mean()
    assert density.score(rows) == pytest.approx(truth, abs=0.35)


def test_samples_have_the_density(two_clusters):
    """Share and width of the clusters; 1,000 draws leave errors of 0.016 and 0.024 (5 of them)."""
    density, rows = two_clusters
    drawn = density.sample(1000, random_state=1)
    assert np.array_equal(drawn, density.sample(1000, random_state=1))
    assert drawn.shape == (1000, 1)
    assert drawn.dtype == np.float64
    high = drawn > 10
    assert high.mean() == pytest.approx((rows > 10).mean(), abs=0.1)
    assert drawn[high].mean() == pytest.approx(13, abs=0.35)
    assert drawn[high].std() == pytest.approx(0.75, abs=0.3)


def test_equal_steps_are_as_exact_as_the_adaptive_solver(two_clusters):
    density, rows = two_clusters
    vdm, u = density.model_, torch.from_numpy(density.gaussian_.whiten(rows[:50]))
    gamma_0, gamma_1 = vdm.schedule.end_points.detach()
    log_p, _ = flow.log_prob(vdm, u, gamma_0, gamma_1, flow.ExactDivergence(), tolerance=1e-7)
    steps, solution = flow.log_prob(
        vdm, u, gamma_0, gamma_1, flow.ExactDivergence(), steps=density.solver_steps
    )
    assert not solution.gave_up
    assert float((steps - log_p).abs().max()) < 0.02
    back = flow.solve(vdm, solution.z, gamma_1, gamma_0, steps=density.solver_steps)
    assert float((back.z - u).abs().max()) < 0.02


def test_an_untrained_network_is_the_normal_distribution():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)) + 1e6
    density = VDMDensity(**FAST).fit(rows)
    torch.nn.init.zeros_(density.model_.network.dense_out.weight)
    torch.nn.init.zeros_(density.model_.network.dense_out.bias)
    directions = density.gaussian_.directions
    normal = stats.multivariate_normal(rows.mean(0), directions.T @ directions)
    assert density.score_samples(rows) == pytest.approx(normal.logpdf(rows), abs=2e-3)


def test_units_change_the_log_density_by_their_logarithm():
    rows = load_wine().data[:, :4] + np.random.default_rng(0).random((178, 4)) * 0.01
    factors = np.array([1.0, 10.0, 0.01, 1e4])
    one = VDMDensity(**FAST).fit(rows)
    other = VDMDensity(**FAST).fit(rows * factors + 3)
    change = np.log(factors).sum()
    expected = one.score_samples(rows) - change
    assert other.score_samples(rows * factors + 3) == pytest.approx(expected, abs=1e-3)


def test_fewer_rows_than_columns_and_columns_that_follow_from_others():
    rows = np.random.default_rng(0).normal(size=(20, 30))
    assert np.isfinite(VDMDensity(**FAST).fit(rows).score_samples(rows[:3])).all()
    twice = np.concatenate([rows[:, :2], rows[:, :1] - 2 * rows[:, 1:2]], axis=1)
    with pytest.warns(UserWarning, match="1 of 3 columns follow from the others"):
        VDMDensity(**FAST).fit(twice)


def test_whitened_rows_are_uncorrelated():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 3))
    gaussian = Gaussian.of(rows, _looked_at(rows), seed=0)
    whitened = gaussian.whiten(rows)
    assert np.cov(whitened.T) == pytest.approx(np.eye(3), abs=0.03)  # less the shrinkage
    assert gaussian.restore(whitened) == pytest.approx(rows)
    assert gaussian.log_det == pytest.approx(-np.linalg.slogdet(gaussian.directions)[1])


def test_probes_are_near_the_exact_divergence():
    """Beyond `EXACT_FEATURES`; the probes are the same for each row, so batches change nothing."""
    rng = np.random.default_rng(0)
    d = EXACT_FEATURES + 1
    rows = rng.normal(size=(150, d)) ** 3
    density = VDMDensity(steps=30, width=16, blocks=1, random_state=0).fit(rows)
    values = density.score_samples(rows[:6])
    assert density.score_samples(rows[3:6]) == pytest.approx(values[3:], rel=1e-9)
    u = torch.from_numpy(density.gaussian_.whiten(rows[:6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("variational_diffusion.sklearn.EXACT_FEATURES", d)
        exact = (
            _log_density(density.model_, u, density.solver_steps).numpy()
            + density.gaussian_.log_det
        )
    assert values == pytest.approx(exact, abs=3)


def test_a_pipeline_and_a_grid_search():
    rows = load_wine().data[:, :3]
    pipeline = make_pipeline(StandardScaler(), VDMDensity(**FAST))
    search = GridSearchCV(pipeline, {"vdmdensity__width": [8, np.int64(16)]}, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the measurements are rounded
        search.fit(rows)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    scores = best.score_samples(rows)
    assert search.score(rows) == best.score(rows) == pytest.approx(scores.mean())


def test_ties_are_told():
    rows = np.random.default_rng(0).integers(0, 4, (200, 2))
    with pytest.warns(UserWarning, match="X: repeated values: 1 of column"):
        VDMDensity(**FAST).fit(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"solver_steps": 0}, "solver_steps = 0"),
        ({"width": 2.5}, r"width = 2\.5"),
        ({"dropout": 1.0}, r"dropout = 1\.0"),
        ({"validation_fraction": 0.0}, r"validation_fraction = 0\.0"),
        ({"learning_rate": -1.0}, r"learning_rate = -1\.0"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    rows = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(InputError, match=message):
        VDMDensity(**options).fit(rows)


def test_constant_columns_are_refused():
    with pytest.raises(InputError, match="column 1 of 2 with one value"):
        VDMDensity(**FAST).fit([[0.1, 2.0], [0.7, 2.0], [0.4, 2.0]])


def test_nothing_global_changes():
    rows = np.random.default_rng(0).normal(size=(40, 2))
    torch.manual_seed(5)
    before = (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    density = VDMDensity(**FAST).fit(rows)
    density.score_samples(rows)
    density.sample(3, random_state=1)
    after = (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert before == after


def test_false_alarms_are_held():
    """Ten fits of 60 rows, a fifth of the rate's promise each way.

    Of new rows a share of k/(n + 1) = 4/41 is marked in the mean over fits. One fit's share has a
    standard deviation of 0.045 (Beta(4, 37)), so the mean of ten has 0.015; the bounds are four.
    """
    rng = np.random.default_rng(0)
    shares = []
    for seed in range(10):
        options = {**FAST, "random_state": seed}
        outliers = VDMOutliers(**options, false_alarms=0.1, calibration_fraction=0.5)
        outliers.fit(rng.standard_t(3, size=(80, 2)))
        shares.append((outliers.predict(rng.standard_t(3, size=(1000, 2))) == -1).mean())
    assert outliers.false_alarms_.mean == pytest.approx(4 / 41)
    assert np.mean(shares) == pytest.approx(4 / 41, abs=0.06)


def test_too_few_rows_for_a_rate():
    rows = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(UserWarning, match="99 rows have to be set aside, and half of 30 are 15"):
        outliers = VDMOutliers(**FAST, false_alarms=0.01).fit(rows)
    assert outliers.offset_ == -np.inf
    assert (outliers.predict(100 * rows) == 1).all()
    with pytest.raises(InputError, match=r"false_alarms = 1\.5"):
        VDMOutliers(**FAST, false_alarms=1.5).fit(rows)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
def test_a_threshold_marks_what_p_values_mark(rate):
    rng = np.random.default_rng(0)
    calibration, scores = rng.normal(size=60), rng.normal(size=500)
    marked = p_values(calibration, scores) <= rate
    assert np.array_equal(scores > threshold(calibration, rate), marked)


def test_a_pickle_and_a_clone_are_the_same():
    rows = np.random.default_rng(0).normal(size=(40, 2))
    outliers = VDMOutliers(**FAST).fit(rows)
    restored = pickle.loads(pickle.dumps(outliers))
    assert np.array_equal(restored.score_samples(rows), outliers.score_samples(rows))
    again = clone(outliers).fit(rows)
    assert np.array_equal(again.score_samples(rows), outliers.score_samples(rows))


def test_the_package_is_imported_without_scikit_learn():
    code = (
        "import sys, variational_diffusion as v; v.VDM, v.fit; "
        "assert not {'sklearn', 'variational_diffusion.sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
