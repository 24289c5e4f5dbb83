"""The examples in the documentation of the package run, and the public names are documented."""

import doctest
import inspect
import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import variational_diffusion as vd

SOURCE = Path(vd.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
SECTIONS = "Args|Returns|Yields|Raises|Warns|Attributes|Examples"
TITLE = re.compile(rf"^({SECTIONS}):$", re.MULTILINE)
NOT_OURS = {"get_extra_state", "set_extra_state", "forward"}  # torch's


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What examples are written for: some names, and a folder with the run runs/digits."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("doctests"))
    run = vd.train("digits", "runs/digits", steps=60, network="mlp", threads=1, progress=False)
    yield {"vd": vd, "np": np, "torch": torch, "run": run}
    os.chdir(before)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, namespace):
    """The figures of an untrained network's 20 steps are not printed, only what must hold."""
    finder = doctest.DocTestFinder(recurse=True)
    runner = doctest.DocTestRunner()
    output = []
    for found in finder.find(import_module(name), name, extraglobs=dict(namespace)):
        torch.manual_seed(0)
        runner.run(found, out=output.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(output)


def sections(text):
    """Return title → lines of the sections of a docstring in Google's style."""
    parts = TITLE.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(section):
    """Return the names that the entries of a section begin with, without stars."""
    return {name.lstrip("*") for name in re.findall(r"^    (\*{0,2}\w+): ", section, re.MULTILINE)}


def problems(name, thing, *, whole):
    """Yield what is missing in the documentation of a function or class.

    whole: every parameter is an entry, and what is returned has a section; a method may say in
    its sentence what one argument is, or whose arguments it takes.
    """
    text = inspect.getdoc(thing) or ""
    if not text or text.startswith("Define the computation"):
        yield f"{name} has no docstring"
    for title in re.findall(r"^([A-Z][a-z]+):$", text, re.MULTILINE):
        if title not in SECTIONS.split("|"):
            yield f"{name}: unknown section {title}"
    found = sections(text)
    if not TITLE.search(text) and re.search(r"^\w+(, \w+)*: [a-z]", text, re.MULTILINE):
        yield f"{name}: arguments are described without a section"
    try:
        signature = inspect.signature(thing)
    except ValueError:  # an exception
        return
    parameters = set(signature.parameters) - {"self", "cls"}
    described = named(found.get("Args", "") + found.get("Attributes", ""))
    referred = not whole and re.search("arguments are those of", text)
    if "Args" in found and not referred and described - parameters and not inspect.isclass(thing):
        yield f"{name}: no parameters {described - parameters}"
    strict = whole or len(parameters) > 1 or "Args" in found
    if strict and not referred and not parameters <= described:
        yield f"{name}: not described: {sorted(parameters - described)}"
    if not whole or inspect.isclass(thing):
        return
    if signature.return_annotation not in (None, "None") and not {"Returns", "Yields"} & set(found):
        yield f"{name}: no Returns"
    if "Raises" not in found:
        yield f"{name}: no Raises"


def public():
    """Yield name, thing, whether it is a name of its own, for names and methods of the package."""
    for name in vd.__all__:
        thing = getattr(vd, name)
        yield name, thing, True
        if not inspect.isclass(thing):
            continue
        for base in thing.__mro__:
            if not base.__module__.startswith("variational_diffusion"):
                continue
            for key, member in vars(base).items():
                function = getattr(member, "__func__", member)
                if inspect.isfunction(function) and key[0] != "_" and key not in NOT_OURS:
                    yield f"{name}.{key}", function, False


def test_public_names_are_documented():
    found = [line for name, thing, whole in public() for line in problems(name, thing, whole=whole)]
    assert not found, "\n".join(sorted(set(found)))


def test_a_missing_section_is_found():
    """The test above can fail."""

    def bad(x: int, y: int) -> int:
        """Add numbers.

        Args:
            x: One.

        Return:
            The sum.
        """
        return x + y

    @dataclass
    class Bad:
        """A pair.

        first: One of it.
        """

        first: int

    assert [line.partition(": ")[2] for line in problems("bad", bad, whole=True)] == [
        "unknown section Return",
        "not described: ['y']",
        "no Returns",
        "no Raises",
    ]
    assert len(list(problems("Bad", Bad, whole=True))) == 1


def test_functions_have_examples():
    missing = [
        name
        for name, thing, whole in public()
        if whole and inspect.isfunction(thing) and ">>>" not in (inspect.getdoc(thing) or "")
    ]
    assert not missing


def test_modules_are_attributes():
    assert vd.process.alpha is import_module("variational_diffusion.process").alpha
    assert vd.data.open_dataset is vd.open_dataset
    assert {"schedules", "likelihood", "sklearn"} <= set(dir(vd)) >= set(vd.__all__)
    assert dir(vd) == sorted(dir(vd))
    assert vd.__all__ == sorted(vd.__all__)
    for name in vd.__all__:
        assert getattr(vd, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'ODE'"):
        vd.ODE  # noqa: B018


def test_values_are_described_in_a_line():
    digits = vd.open_dataset("digits")
    assert repr(digits.splits["test"]) == "Split(297 test examples of 1×8×8, 17 levels)"
    reals = vd.open_dataset(np.random.default_rng(0).normal(size=(50, 3)))
    assert repr(reals).endswith("test examples of 3, real values)")
