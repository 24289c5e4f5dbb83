"""Anomaly detection: which examples do not belong to the data that a model was trained on.

Three lines give every example an anomaly score and a p-value:

    run = Run.open("runs/digits")
    splits = open_dataset(run.config.data).splits
    found = anomaly.score(run.load(), splits["test"], splits["validation"], false_alarms=0.01)

`found.marked` tells which examples are rarer than one in a hundred. `profiles` measures the loss,
`scores` makes scores of it, `conformal` makes p-values of the scores and says what they promise.
"""

from variational_diffusion.anomaly.conformal import (
    calibration_needed,
    discoveries,
    false_alarms,
    fewest_discoveries,
    own_p_values,
    p_values,
    rounded_up,
)
from variational_diffusion.anomaly.profiles import BANDS, Profiles, measured, profiles, statistics
from variational_diffusion.anomaly.reference import Reference, check_reference
from variational_diffusion.anomaly.scores import SCORES
from variational_diffusion.anomaly.scoring import Scored, score
from variational_diffusion.anomaly.sheet import save_score_sheet

__all__ = [
    "BANDS",
    "SCORES",
    "Profiles",
    "Reference",
    "Scored",
    "calibration_needed",
    "check_reference",
    "discoveries",
    "false_alarms",
    "fewest_discoveries",
    "measured",
    "own_p_values",
    "p_values",
    "profiles",
    "rounded_up",
    "save_score_sheet",
    "score",
    "statistics",
]
