"""A picture of any batch of images, in a notebook or in a file."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from variational_diffusion.errors import InputError
from variational_diffusion.images.pictures import is_image, sheet


def show(
    values: np.ndarray | Tensor, *, levels: int | None = None, columns: int | None = None
) -> Image.Image:
    """Return a picture of images: data, samples, z or x̂.

    Integers are shown from 0, black, to their largest value, white; real values from their lowest
    to their highest.

    Args:
        values: One image, shape (channels, height, width) with 1, 3 or 4 channels; several, with
            one axis more; or rows of several, with two.
        levels: Of integers: `levels` − 1 is white.
        columns: Images in a row; None: as many as make the sheet about square.

    Returns:
        The picture, which a notebook shows and `.save("FILE.png")` writes.

    Raises:
        InputError: For what is not an image, such as vectors.

    Examples:
        >>> picture = vd.show(run.sample(4, steps=5), levels=17)
        >>> picture.size
        (134, 134)
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    if not (3 <= values.ndim <= 5 and is_image(values.shape[-3:])):
        raise InputError(
            f"values = an array of shape {values.shape}: a picture needs (channels, height, width) "
            "with 1, 3 or 4 channels, or a batch of these; plot vectors with matplotlib"
        )
    if values.ndim == 5:
        columns = columns or values.shape[1]
    images = values.reshape(-1, *values.shape[-3:])
    if levels is None and images.size and not np.issubdtype(images.dtype, np.floating):
        return sheet(images, None, columns, value_range=(0.0, float(images.max())))
    return sheet(images, levels, columns)
