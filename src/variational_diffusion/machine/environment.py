"""What is installed, and what there is to compute with.

The packages that are wanted are those of our own metadata, so nothing is listed twice.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from variational_diffusion.errors import DISTRIBUTION

EXTRAS = {
    "data": "parquet and tar files, hf: data",
    "hub": "vdm export --hub, vdm push, VDM.from_pretrained of a repository",
    "ode": "vdm evaluate --estimator ode, vdm edit interpolate, VDMDensity",
    "report": "vdm report, vdm schedule, vdm score --figure",
    "tracking": "vdm train --track",
    "heif": "HEIC images",
    "jxl": "vdm compress: JPEG XL as a baseline",
    "onnx": "vdm export --onnx",
    "official": "vdm import-official",
    "diffusers": "variational_diffusion.interchange.diffusers",
    "video": "vdm sample --animate FILE.mp4",
    "web": "vdm serve",
}
"""Extra → what needs it; `pip install "variational-diffusion[EXTRA]"` adds it, [all] adds all."""

_REQUIREMENT = re.compile(
    r"""(?P<name>[\w-]+) (?P<wanted>>=[\d.]+)? (\s*;\s*extra\s*==\s*["'](?P<extra>\w+)["'])?""",
    re.VERBOSE,
)
"""How our metadata write what they ask for: a lower bound, and nothing that needs a parser."""

_GIB = 2**30


@dataclass(frozen=True)
class Package:
    """A package that we ask for.

    wanted: versions, such as ">=2.6"; "" for all. installed: its version; None where it is not
    there. extra: the extra that asks for it; None: it is always needed.
    """

    name: str
    wanted: str
    installed: str | None
    extra: str | None

    @property
    def fits(self) -> bool:
        """Whether it is there in a version that will do."""
        return self.installed is not None and _numbers(self.installed) >= _numbers(self.wanted)


def version() -> str:
    return metadata.version(DISTRIBUTION)


def machine() -> dict[str, Any]:
    """Return what there is to compute with: versions, processor, memory, GPUs."""
    import psutil  # noqa: PLC0415 (where it is needed: this module tells what is missing)
    import torch  # noqa: PLC0415 (a second)

    from variational_diffusion.machine import execution, threads  # noqa: PLC0415 (they import torch)

    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        gpus.append(f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    return {
        "version": version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads.allowed(),
        "cpu_quota": threads.cpu_quota(),
        "others_running": threads.others_running(),
        "variables": {
            name: os.environ[name]
            for name in (threads.VARIABLE, "OMP_NUM_THREADS", execution.VARIABLE)
            if name in os.environ
        },
        "memory_gib": round(psutil.virtual_memory().total / _GIB, 1),
        "bfloat16": execution.multiplies_bfloat16(torch.device("cpu")),
        "gpus": gpus,
        "device": "cuda" if gpus else "cpu",
    }


def packages() -> list[Package]:
    """Return every package that this one asks for, those of `EXTRAS` last."""
    found = []
    for text in metadata.requires(DISTRIBUTION) or []:
        asked = _REQUIREMENT.fullmatch(text)
        if asked is None or asked["extra"] not in (None, *EXTRAS):  # of `all`, or for development
            continue
        name, wanted, extra = asked["name"], asked["wanted"] or "", asked["extra"]
        found.append(Package(name, wanted, _installed(name), extra))
    return sorted(found, key=lambda package: (package.extra or "", package.name))


def processor() -> str:
    """Return the processor's name, as the system states it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _numbers(version: str) -> list[int]:
    """Return the numbers of a version, to compare; a local part such as +cpu does not count."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
