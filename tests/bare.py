"""Run Python as if only the bare requirements were installed: python tests/bare.py -m MODULE …

Whatever is installed and not asked for by the requirements of pyproject.toml without an extra, nor
by theirs, cannot be found.
"""

import runpy
import sys
import tomllib
from functools import cache
from importlib import machinery, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def closure(requirements):
    """Return the names of distributions that requirements bring, those of their own included."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        environments = [{"extra": extra} for extra in ("", *asked.extras)]
        if asked.marker and not any(map(asked.marker.evaluate, environments)):
            continue
        if name not in found:
            found.add(name)
            try:
                texts = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            for inner in map(Requirement, texts):
                if inner.marker is None or any(map(inner.marker.evaluate, environments)):
                    waiting.append(Requirement(str(inner).partition(";")[0]))
    return found


@cache
def hidden(*requirements):
    """Return the modules at the top of what is installed beside the requirements."""
    kept = closure(requirements) | {"variational-diffusion"}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if kept.isdisjoint(map(canonicalize_name, owners))
    }


def hide(modules):
    """Let the modules not be found from here on."""
    find = machinery.PathFinder.find_spec

    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in modules else find(name, path, target)

    machinery.PathFinder.find_spec = find_spec
    for name in list(sys.modules):
        if name.partition(".")[0] in modules:
            del sys.modules[name]


if __name__ == "__main__":
    hide(hidden(*PROJECT["dependencies"]))
    sys.argv = sys.argv[2:] if sys.argv[1] == "-m" else sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
