"""Samplers: generators that carry z along a falling grid of γ.

A sampler is called with a `ReverseProcess`, z drawn from the prior N(0, I), and gammas from γ_1
down to γ_0, one more than there are steps. It yields z after every step; what is done with it (a
progress bar, an animation, stopping) is the caller's loop. The same generator gives the same bits.

Samplers that draw nothing (`ddim`, `dpmpp-2m`, `dpmpp-3m`, `unipc`, `heun`) treat every example by
itself: a batch is what its examples are one by one, from the same z. The others draw for the whole
batch, and `adaptive` chooses its steps for it.
"""

from variational_diffusion.errors import one_of
from variational_diffusion.sampling.clipping import Clipped as Clipped
from variational_diffusion.sampling.contract import Denoised as Denoised
from variational_diffusion.sampling.contract import ReverseProcess as ReverseProcess
from variational_diffusion.sampling.contract import Sampler as Sampler
from variational_diffusion.sampling.contract import estimate as estimate
from variational_diffusion.sampling.multistep import Multistep as Multistep
from variational_diffusion.sampling.onestep import Adaptive as Adaptive
from variational_diffusion.sampling.onestep import ancestral as ancestral
from variational_diffusion.sampling.onestep import heun as heun

SAMPLERS: dict[str, Sampler] = {
    "ancestral": ancestral,
    "ddim": Multistep(order=1),
    "dpmpp-2m": Multistep(order=2),
    "dpmpp-3m": Multistep(order=3),
    "sde-dpmpp-2m": Multistep(order=2, eta=1.0),
    "unipc": Multistep(order=3, corrected=True),
    "heun": heun,
    "adaptive": Adaptive(),
}

DEFAULT_STEPS = 20


def default_for(shape: tuple[int, ...]) -> str:
    """Return the name of the sampler for examples of a shape where none is asked for.

    Images: fresh noise mends what a network of images gets wrong. Vectors: their networks err
    little, so that the most exact one is the nearest (docs/sampling.md).
    """
    return "sde-dpmpp-2m" if len(shape) == 3 else "unipc"


def named(sampler: str) -> Sampler:
    """Return the sampler with a name of `SAMPLERS`."""
    one_of("sampler", sampler, SAMPLERS)
    return SAMPLERS[sampler]
