"""Editing: inpainting, posterior samples, variations and interpolation of examples."""

from variational_diffusion.editing.tasks import below as below
from variational_diffusion.editing.tasks import decode as decode
from variational_diffusion.editing.tasks import encode as encode
from variational_diffusion.editing.tasks import inpaint as inpaint
from variational_diffusion.editing.tasks import interpolate as interpolate
from variational_diffusion.editing.tasks import posterior_samples as posterior_samples
from variational_diffusion.editing.tasks import spherical as spherical
from variational_diffusion.editing.tasks import to_data as to_data
from variational_diffusion.editing.tasks import variations as variations
