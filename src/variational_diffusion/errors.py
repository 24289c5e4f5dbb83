"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A value that the caller gave is not allowed.

    The message is one line: the name and the value, what is allowed, and what to do or type. The
    command line prints it and exits with 2; every other exception is a defect of ours.

    Examples:
        >>> vd.Discretized(levels=1)
        Traceback (most recent call last):
        ...
        variational_diffusion.errors.InputError: levels = 1: discrete data have 2 to 65536 levels
    """


class GoneError(InputError):
    """The data of a run are not where they were."""


class DivergedError(InputError):
    """Training came to numbers that are not finite, again and again."""


class DamagedError(InputError):
    """An example that should be there and cannot be read: damaged, empty or not readable.

    It costs one example: `skip_damaged` leaves it out, and counts it.
    """
