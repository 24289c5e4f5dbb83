"""Conditions: what a model is given beside z, as it is encoded, and how strongly it is followed."""

from variational_diffusion.conditions.encodings import CONDITIONS as CONDITIONS
from variational_diffusion.conditions.encodings import Arrays as Arrays
from variational_diffusion.conditions.encodings import Batch as Batch
from variational_diffusion.conditions.encodings import Labels as Labels
from variational_diffusion.conditions.encodings import as_batch as as_batch
from variational_diffusion.conditions.encodings import parted as parted
from variational_diffusion.conditions.guidance import EVERYWHERE as EVERYWHERE
from variational_diffusion.conditions.guidance import Guided as Guided
