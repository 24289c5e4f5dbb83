"""Likelihoods of data under a trained model, in bits per dimension, with error bars."""

from variational_diffusion.likelihood.dequantisation import DEQUANTISATIONS as DEQUANTISATIONS
from variational_diffusion.likelihood.estimators import ESTIMATORS as ESTIMATORS
from variational_diffusion.likelihood.estimators import Chain as Chain
from variational_diffusion.likelihood.estimators import Estimate as Estimate
from variational_diffusion.likelihood.estimators import Estimator as Estimator
from variational_diffusion.likelihood.estimators import Flow as Flow
from variational_diffusion.likelihood.estimators import Importance as Importance
from variational_diffusion.likelihood.estimators import Infinite as Infinite
from variational_diffusion.likelihood.estimators import evaluate as evaluate
from variational_diffusion.likelihood.estimators import stratified_times as stratified_times
from variational_diffusion.likelihood.maps import bits_of_entries as bits_of_entries
from variational_diffusion.likelihood.rounds import LARGEST_SHARE as LARGEST_SHARE
from variational_diffusion.likelihood.rounds import MOST_EVALUATIONS as MOST_EVALUATIONS
from variational_diffusion.likelihood.rounds import Rounds as Rounds
from variational_diffusion.likelihood.rounds import evaluate_rounds as evaluate_rounds
from variational_diffusion.likelihood.summary import Summary as Summary
from variational_diffusion.likelihood.summary import example_columns as example_columns
from variational_diffusion.likelihood.summary import summarize as summarize
from variational_diffusion.likelihood.summary import summary_rows as summary_rows
