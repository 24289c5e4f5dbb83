"""What values of options are: numbers, names, times, sizes. Each refuses with what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click

from variational_diffusion.errors import meant

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Number(click.FloatRange):
    """A number, with bounds or without, which is finite."""

    name = "float"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return found


class OneOf(click.Choice):
    """One of several names."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}{meant(value, self.choices)}", param, ctx)


class Size(click.ParamType):
    """HEIGHTxWIDTH, or one number for both."""

    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size: give one as 32 or 32x48 (height x width)")
        return int(parts[0]), int(parts[-1])


class Duration(click.ParamType):
    """A time as 60s, 10m or 1.5h; without a letter it is in `unit`, as the command takes it.

    unit: "seconds" or "minutes". least: the shortest, in that unit.
    """

    name = "TIME"

    def __init__(self, unit: str, least: float = 0.0) -> None:
        self.unit, self.least = unit, least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = str(value).strip().lower()
        seconds = _SECONDS[self.unit[0]]
        if number[-1:] in _SECONDS:
            number, seconds = number[:-1], _SECONDS[number[-1]]
        try:
            found = float(number) * seconds / _SECONDS[self.unit[0]]
        except ValueError:
            found = math.nan
        if not self.least <= found < math.inf:
            least = f" of {self.least:g} {self.unit} or more" if self.least else ""
            self.fail(f"{value!r}: give a time{least} as 60s, 10m or 1.5h, or {self.unit}")
        return found


class Shape(click.ParamType):
    """The axes of one example, separated by commas."""

    name = "C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        axes = str(value).split(",")
        if not all(axis.isdigit() and int(axis) > 0 for axis in axes):
            self.fail(f"{value!r} is not a shape: give one as 3,32,32 (channels, height, width)")
        return tuple(int(axis) for axis in axes)
