"""The estimators by the names that commands and `evaluate` take, each with its own options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from variational_diffusion.errors import InputError, one_of
from variational_diffusion.likelihood.estimators import (
    ContinuousBound,
    DiscreteBound,
    Estimator,
    ODELikelihood,
)
from variational_diffusion.likelihood.importance import ImportanceWeighted, default_probes


class Entry(NamedTuple):
    """An estimator in the table.

    kind: its class. about: what it estimates, in a few words. options: that `made` takes, by name.
    made: (dimensions of an example, **options) → the estimator; an option that is not given has the
    default of the class.
    """

    kind: type[Any]
    about: str
    options: tuple[str, ...]
    made: Callable[..., Estimator]


def _discrete(dimensions: int, *, exact: bool = False, **options: Any) -> DiscreteBound:
    return DiscreteBound(**(options | {"draws": None} if exact else options))


def _ode(dimensions: int, *, exact: bool = False, **options: Any) -> ODELikelihood:
    return ODELikelihood(**(options | {"probes": None} if exact else options))


def _importance(dimensions: int, *, samples: int = 8, **options: Any) -> ImportanceWeighted:
    probes = {"probes": default_probes(dimensions)}
    return ImportanceWeighted(samples, _ode(dimensions, **probes | options))


_OF_ODE = ("dequantisation", "probes", "tolerance", "exact")

ESTIMATORS: dict[str, Entry] = {
    "vlb": Entry(
        ContinuousBound,
        "the bound for infinitely many steps",
        ("draws",),
        lambda dimensions, **options: ContinuousBound(**options),
    ),
    "discrete": Entry(
        DiscreteBound,
        "the bound of the model with --steps steps",
        ("steps", "grid", "variance", "draws", "exact"),
        _discrete,
    ),
    "ode": Entry(ODELikelihood, "the probability-flow ODE", _OF_ODE, _ode),
    "importance": Entry(
        ImportanceWeighted,
        "the ODE with --samples weighted draws",
        ("samples", *_OF_ODE),
        _importance,
    ),
}


def estimator_named(name: str, dimensions: int, **options: Any) -> Estimator:
    """Return an entry of `ESTIMATORS` with its options; those that are None have their default.

    Raises InputError for an unknown name, and for an option of another estimator.
    """
    one_of("estimator", name, ESTIMATORS)
    entry = ESTIMATORS[name]
    given = {
        key: value for key, value in options.items() if value is not None and value is not False
    }
    for key, value in given.items():
        if key not in entry.options:
            others = [other for other, one in ESTIMATORS.items() if key in one.options]
            where = f"it goes with --estimator {' or '.join(others)}"
            raise InputError(
                f"{key} = {value!r}: estimator {name!r} has no such option; "
                + (where if others else f"it has {', '.join(entry.options)}")
            )
    if given.get("exact") and given.get("probes") is not None:
        raise InputError(
            f"exact, probes = {given['probes']}: the exact divergence takes no probes; give one of "
            "the two"
        )
    return entry.made(dimensions, **given)


def name_of(estimator: Estimator) -> str:
    """Return the name of an estimator in the table, or that of its class."""
    named = (name for name, entry in ESTIMATORS.items() if type(estimator) is entry.kind)
    return next(named, type(estimator).__name__)
