"""The command line's lists of choices are those of the tables that they stand for."""

import math

from variational_diffusion.anomaly import SCORES
from variational_diffusion.cli import compress, edit, ema, plan, score
from variational_diffusion.cli.shared import estimators, examples, options, sampling
from variational_diffusion.compression import MAX_IMAGES
from variational_diffusion.data import SPLITS
from variational_diffusion.data.beside import DEGRADATIONS
from variational_diffusion.decoders import UNSEEN
from variational_diffusion.editing.operators import MEASUREMENTS
from variational_diffusion.grids import GRIDS, VARIANCES
from variational_diffusion.likelihood import (
    DEQUANTISATIONS,
    ESTIMATORS,
    EXACT_DIMENSIONS,
    LARGEST_SHARE,
    LOOSEST,
    MOST_EVALUATIONS,
    PROBES,
)
from variational_diffusion.machine.execution import COMPILE_MODES, PRECISIONS
from variational_diffusion.run.averages import WIDTHS_COMPARED
from variational_diffusion.run.compression import GROUP
from variational_diffusion.run.plan import HARDWARE
from variational_diffusion.run.scoring import FALSE_ALARMS, REFERENCE
from variational_diffusion.sampling import DEFAULT_STEPS, SAMPLERS


def test_the_choices_of_estimators_are_the_table():
    about = {name: entry.about for name, entry in ESTIMATORS.items()}
    assert about == estimators.ESTIMATORS
    assert tuple(DEQUANTISATIONS) == estimators.DEQUANTISATIONS
    assert (LOOSEST, EXACT_DIMENSIONS, PROBES) == (
        estimators.LOOSEST,
        estimators.EXACT_DIMENSIONS,
        estimators.PROBES,
    )
    assert (LARGEST_SHARE, MOST_EVALUATIONS) == (
        estimators.LARGEST_SHARE,
        estimators.MOST_EVALUATIONS,
    )


def test_the_choices_of_sampling_are_the_tables():
    assert tuple(SAMPLERS) == sampling.SAMPLERS
    assert tuple(GRIDS) == sampling.GRIDS
    assert tuple(VARIANCES) == sampling.VARIANCES
    assert (DEFAULT_STEPS, UNSEEN) == (sampling.DEFAULT_STEPS, sampling.UNSEEN)
    assert f"for images of {math.ceil(1 / UNSEEN)} levels" in _help(sampling.sampling_options)


def test_the_other_choices_are_the_tables():
    assert tuple(SPLITS) == examples.SPLITS
    assert tuple(DEGRADATIONS) == options.DEGRADATIONS
    assert tuple(SCORES) == score.SCORES
    assert (REFERENCE, FALSE_ALARMS) == (score.REFERENCE, score.FALSE_ALARMS)
    assert (COMPILE_MODES, PRECISIONS) == (options.COMPILE_MODES, options.PRECISIONS)


def _help(decorate):
    def command():
        pass

    decorate(command)
    return " ".join(option.help or "" for option in command.__click_params__)


def test_the_choices_of_files_edits_and_plans_are_the_tables():
    assert (compress.GROUP, compress.MAX_IMAGES) == (GROUP, MAX_IMAGES)
    assert tuple(MEASUREMENTS) == edit.MEASUREMENTS
    assert tuple(map(float, ema.WIDTHS.split(","))) == WIDTHS_COMPARED
    assert tuple(HARDWARE) == plan.HARDWARE
