"""Sheets of samples that show a training run how it comes along."""

from __future__ import annotations

import torch

from variational_diffusion.data import Split
from variational_diffusion.images.pictures import is_image, save_sheet, sheet
from variational_diffusion.machine.distributed import here
from variational_diffusion.run.directory import Run
from variational_diffusion.run.tracking import Tracking
from variational_diffusion.storage.files import cached
from variational_diffusion.training import TrainingState

_COUNT, _SEED = 36, 0


def write_sheet(run: Run, state: TrainingState, tracking: Tracking, split: Split) -> None:
    """Draw from the averaged weights, by the same seed every time; write and track the sheet.

    A model with conditions is given those of the first examples of `split`. The sheet is
    `samples/step-00001200.png` of the run. Of data that are no images there is none. With several
    processes, all of them call this and the leading one writes.
    """
    vdm = state.average.module
    if not is_image(vdm.shape):
        return
    generator = torch.Generator(vdm.schedule.gamma_0.device).manual_seed(_SEED)
    count = min(_COUNT, len(split))
    model, _ = vdm.given_in(split.batch(range(count)))
    samples = model.sample(count, generator=generator).cpu().numpy()
    if not here().leads:
        return
    levels = run.config.data.levels
    path = run.path / "samples" / f"step-{state.step:08}.png"
    with cached("the sheet of samples"):
        save_sheet(samples, levels, path, overwrite=True)
    tracking.image(state.step, "samples", sheet(samples, levels))
