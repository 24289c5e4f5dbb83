"""Weightings w(γ) of the diffusion loss: training for looks instead of likelihood.

Training then minimises ∫ w(γ) E[m(γ)] dγ, m = ½‖ε − ε̂‖², in place of the bound's ∫ E[m(γ)] dγ
(VDM section 5.2). A factor that is the same for all γ changes nothing that the optimizers see.

A weighting that does not fall with γ is still a likelihood's. By parts,

    w(γ_1) prior + ∫ w m dγ + w(γ_0) reconstruction
        = w(γ_0) (the bound on −log p(x)) + ∫ w'(γ) (the bound on KL(q(z_γ|x) ‖ p(z_γ))) dγ,

a mixture, with weights ≥ 0, of the bound and of bounds for data with noise added to them, which is
the bound with data augmentation (Kingma and Gao, "Understanding Diffusion Objectives as the ELBO
with Simple Data Augmentation" (2023), theorem 1). In the table "sigmoid", "velocity" and
"edm-monotone" do not fall; "noise" and "edm" do.

Source: Kingma and Gao (2023), table 1 and section 5. What other losses weigh the levels by is the
density of γ they draw times their factor on ‖ε − ε̂‖², here up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from variational_diffusion.errors import one_of

Weighting = Callable[[Tensor], Tensor]
"""γ → w(γ) > 0, of the same shape; it has a derivative."""

_SIGMOID_SHIFT = 2.0
_EDM_MEAN, _EDM_STD, _EDM_DATA_STD = -2.4, 2.4, 0.5
_EDM_HIGHEST = 3.3077775163808885  # the root of d log w/dγ


def sigmoid(gamma: Tensor) -> Tensor:
    """Return the sigmoid of γ + 2: as the bound for coarse structure, little for the finest."""
    return torch.sigmoid(gamma + _SIGMOID_SHIFT)


def velocity(gamma: Tensor) -> Tensor:
    """Return w = e^{γ/2}: ‖v − v̂‖² with the cosine schedule, or flow matching on straight lines."""
    return torch.exp(0.5 * gamma)


def noise(gamma: Tensor) -> Tensor:
    """Return w = sech(γ/2): ‖ε − ε̂‖² with the cosine schedule, the "simple" loss."""
    return 1 / torch.cosh(0.5 * gamma)


def edm(gamma: Tensor) -> Tensor:
    """Return w = N(γ; −2.4, 2.4²) (e^γ + ½²), up to a constant: Karras et al. (2022), table 1.

    They draw log σ = γ/2 from N(−1.2, 1.2²) and weigh ‖x − x̂‖² by (σ² + ½²)/(½ σ)².
    """
    density = torch.exp(-0.5 * ((gamma - _EDM_MEAN) / _EDM_STD).square())
    return density * (torch.exp(gamma) + _EDM_DATA_STD**2)


def edm_monotone(gamma: Tensor) -> Tensor:
    """Return `edm` up to its highest value, and that value for all larger γ."""
    return edm(gamma.clamp(max=_EDM_HIGHEST))


WEIGHTINGS: dict[str, Weighting | None] = {
    "bound": None,
    "sigmoid": sigmoid,
    "velocity": velocity,
    "noise": noise,
    "edm": edm,
    "edm-monotone": edm_monotone,
}
"""None is the bound itself, w = 1."""


def weighting_named(name: str) -> Weighting | None:
    """Return an entry of `WEIGHTINGS`; raise `InputError` that lists them for another name."""
    one_of("weighting", name, WEIGHTINGS)
    return WEIGHTINGS[name]
