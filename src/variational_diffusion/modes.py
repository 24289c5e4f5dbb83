"""Evaluation mode for the time of a call.

Dropout belongs to training. What draws or measures with a model does so in evaluation mode, and
leaves every module in the mode that it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from torch import nn

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put the modules of a model into evaluation mode; each gets its own mode back.

    model: what is no module has no mode and is left alone.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_evaluation_mode(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function, or a generator, that draws or measures with its first module.

    A generator's model is in evaluation mode while the generator works, and in its own between two
    values, where the caller's loop has it.
    """

    @wraps(function)
    def evaluated(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        given = (*args, *options.values())
        model = next((value for value in given if isinstance(value, nn.Module)), None)
        with evaluating(model):
            result = function(*args, **options)
        return cast(Result, _steps(model, result)) if isinstance(result, Generator) else result

    return evaluated


def _steps(model: object, work: Generator[Any, None, None]) -> Iterator[Any]:
    while True:
        with evaluating(model):
            try:
                value = next(work)
            except StopIteration:
                return
        yield value
