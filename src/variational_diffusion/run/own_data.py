"""The data of a run: where they are, and whether they are those that it was trained on."""

from __future__ import annotations

import logging

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Dataset, is_there, open_dataset
from variational_diffusion.data.memory import MEMORY
from variational_diffusion.errors import GoneError, InputError
from variational_diffusion.run.directory import Run

LOG = logging.getLogger(__name__)


def opened_own(config: DataConfig) -> Dataset:
    """Open the data that a run was trained on; raise `GoneError` where they are not there."""
    if config.source.startswith(MEMORY):
        raise GoneError(
            f"data = '{config.source}' were given in memory, and a run does not keep them: pass "
            "them again as data, as in evaluate(run, data), or give a file of them with --data"
        )
    if not is_there(config.source):
        raise GoneError(
            f"data = '{config.source}': the data of this run are not there any more; give their "
            "new place with --data (in Python Run.open(run, data=place))"
        )
    return open_dataset(config)


def check_known(run: Run, dataset: Dataset) -> None:
    """Remark, once, that the data of a run have changed since it was trained.

    Examples that were added or taken away do not move the others between the splits. Raises
    InputError where they do, which is where the splits follow from the order of all examples.
    """
    change = run.config.change(dataset.fingerprint)
    if not change:
        return
    changed = f"'{run.path}': its data '{dataset.source}' have changed since it was trained"
    if dataset.rule is not None and dataset.rule.by == "order":
        raise InputError(
            f"run = {changed} ({change}), and with them which are test examples: bring them back "
            "as they were, or give examples as DATA"
        )
    if not run.remarked:
        LOG.warning(
            "%s (%s): figures are of the examples there are now. None of its test examples was "
            "trained on; for the figures of then, bring the data back, or give their place with "
            "--data",
            changed,
            change,
        )
    run.remarked = True


def move_data(run: Run, place: str) -> None:
    """Tell a run where its data are now; it is kept in the run, if that can be written.

    Raises InputError for data that are not those that it was trained on.
    """
    dataset = open_dataset(run.config.data.model_copy(update={"source": place}))
    own = (run.config.model.shape, run.config.data.levels)
    change = run.config.change(dataset.fingerprint)
    if (dataset.shape, dataset.levels) != own:
        change = f"shape {dataset.shape} and levels {dataset.levels}, not {own[0]} and {own[1]}"
    if change:
        raise InputError(
            f"data = '{place}': these are not the data of '{run.path}' ({change}); give the place "
            "of those, or measure on these as DATA"
        )
    run.data = dataset
    try:
        run.set_data(run.config.data.model_copy(update={"source": dataset.source}), None)
    except (InputError, OSError):
        LOG.info("'%s' cannot be written, so the place of its data is not kept", run.path)
