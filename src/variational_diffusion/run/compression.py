"""Examples compressed by the model of a run, and brought back.

    kept/DIGEST.safetensors    the weights that a file was made with, and the errors of its chain

A file needs the numbers that its model had when it was made. Training on changes them, so they are
kept in the run, once for each model that anything was compressed with, under the digest that the
file names. Decompressing takes them from there, opens no data, measures nothing and writes nothing
into the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from variational_diffusion.compression import ChainCoder, Container
from variational_diffusion.compression.archive import COMPARED, check_new, classical_lengths, pack
from variational_diffusion.compression.needed import model_digest, model_state, with_state
from variational_diffusion.compression.unpacking import Unpacking
from variational_diffusion.data import Dataset, Originals, Split, open_originals
from variational_diffusion.data.memory import in_order
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.escaping import printable
from variational_diffusion.grids import PredictedErrors, fewest_steps
from variational_diffusion.machine.execution import Execution
from variational_diffusion.machine.progress import Listener
from variational_diffusion.model import VDM
from variational_diffusion.networks import VarianceHead
from variational_diffusion.run.directory import Run
from variational_diffusion.run.examples import Data, check_free, chosen_examples, examples_for
from variational_diffusion.run.noise_errors import expected_errors, reverse_chain, widened
from variational_diffusion.run.trained import Trained
from variational_diffusion.storage.files import cached, expanded

LOG = logging.getLogger(__name__)

GROUP = 10_000
"""Images that share a stack at most, if nothing else is asked for."""

_KEPT = "kept"


@dataclass(frozen=True)
class Compressed:
    """A file that `compress` wrote.

    Attributes:
        path: The file.
        bytes: Its size.
        examples: What it holds, as `Split.as_json`.
        images: Number of images.
        values: Number of values of all images.
        by_model: Values that the model coded.
        beside_the_model: Images that a classical coder coded, because it took fewer bits.
        bits_per_dim: Of the file, for every value.
        bound: Of the chain of `steps` steps, in bits per dimension, for the images that the model
            coded.
        steps: Steps T of the chain.
        overhead: What the file has above the bound, by cause, in bits per dimension.
        classical: Bits per dimension of other coders by name, for the first `compared` images.
        compared: Number of those images.
        model: Digest of the model that decodes the file.
    """

    path: Path
    bytes: int
    examples: dict[str, Any]
    images: int
    values: int
    by_model: int
    beside_the_model: int
    bits_per_dim: float
    bound: float
    steps: int
    overhead: dict[str, float]
    classical: dict[str, float]
    compared: int
    model: str

    def as_json(self) -> dict[str, Any]:
        """Return the figures for a JSON object."""
        values = asdict(self)
        path, examples = str(values.pop("path")), values.pop("examples")
        return {"file": path, **examples, **values}

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes:,} bytes for {self.examples['description']}, "
            f"{self.bits_per_dim:.4f} bits/dim (bound {self.bound:.4f}, T = {self.steps})"
        )


def compress(
    run: Run | str | Path,
    data: Data | None,
    path: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    steps: int | None = None,
    variance: str | None = None,
    group_size: int = GROUP,
    fast: bool = False,
    verify: bool = True,
    weights: str = "ema",
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
) -> Compressed:
    """Compress examples without loss by the model of a run: `vdm compress`.

    The same examples, model and options give the same file. The model is not in it: `decompress`
    takes the run again. A model with conditions compresses without them. Errors of the model that
    its chain needs are measured the first time, and kept in the run.

    Args:
        run: The run, or its directory.
        data: What the command line calls DATA, images of any size; or an array or tensor of
            integers with examples along its first axis; or a `Dataset` or `Split`. None: the run's
            own data.
        path: The file to write; its name ends in .vdmz.
        split: Which of the run's own examples; None: the test examples.
        limit: Number of examples, drawn at random with seed 0; None: all.
        steps: Steps T of the chain; None: the fewest whose diffusion loss is expected to be at most
            5 % above that of infinitely many.
        variance: Of the reverse steps, an entry of `grids.VARIANCES`; None: "predicted" where the
            run has a variance head, otherwise "position".
        group_size: Images that share a stack; smaller groups are decoded on their own, and cost
            more.
        fast: Compute in float32: about twice as fast, and only the same machine with as many
            threads decodes the file.
        verify: Decode the file and compare before it gets its name.
        weights: "ema", "raw", or a name that `vdm ema` gave.
        device: "cpu", "cuda", "cuda:1", …; "auto": cuda if there is any.
        threads: CPU threads; None: as torch has them.
        progress: As at `evaluate`.

    Returns:
        Where the file is, its size, and where its bits went.

    Raises:
        InputError: For a path that exists, a model of real values, and examples that the model
            cannot code or that would not come back as they are.

    Examples:
        >>> x = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8))
        >>> c = vd.compress(run, x, "noise.vdmz", steps=5, variance="posterior")
        >>> c.bytes == c.path.stat().st_size, c.images
        (True, 3)
        >>> back = vd.decompress(run, "noise.vdmz")
        >>> bool((back == x).all())
        True
    """
    path = expanded(path)
    check_new(path)
    run = run if isinstance(run, Run) else Run.open(run)
    execution = Execution(device, threads)
    with execution.begun(follow=not fast):
        trained = Trained.open(run, weights, execution)
        if not isinstance(trained.vdm.decoder, Discretized):
            raise InputError(
                f"run = '{run.path}' is a model of real values: lossless compression is for "
                "integers"
            )
        check_free(run)
        originals = _originals(run, trained.vdm, data, split, limit)
        for note in originals.notes:
            LOG.info("note: %s", note)
        if data is not None:
            given = partial(examples_for, run, data, None, limit, condition="none")
            trained = replace(trained, stand_in=given)
        variance = variance or ("position" if run.head(weights) is None else "predicted")
        if steps is None:
            errors = expected_errors(trained, variance, progress=progress)
            steps = fewest_steps(trained.vdm.schedule, *errors)
        vdm, gammas = reverse_chain(trained, steps, "optimal", variance, progress=progress)
        coder = ChainCoder(vdm, gammas.cpu().numpy(), portable=not fast)
        _keep(run, vdm, coder.model, weights, variance)
        totals = pack(
            path,
            coder,
            originals,
            weights=weights,
            variance=variance,
            group=group_size,
            verify=verify,
            progress=progress,
        )
    size = path.stat().st_size
    return Compressed(
        path=path,
        bytes=size,
        examples=originals.as_json(),
        images=totals.images,
        values=totals.values,
        by_model=totals.by_model,
        beside_the_model=totals.beside_images,
        bits_per_dim=8 * size / totals.values,
        bound=totals.bound,
        steps=coder.steps,
        overhead=totals.overhead(size),
        classical=classical_lengths(originals, coder.levels),
        compared=min(COMPARED, totals.images),
        model=coder.model,
    )


@overload
def decompress(
    run: Run | str | Path,
    file: str | Path,
    path: None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
) -> np.ndarray: ...


@overload
def decompress(
    run: Run | str | Path,
    file: str | Path,
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
) -> Path: ...


def decompress(
    run: Run | str | Path,
    file: str | Path,
    path: str | Path | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: bool | Listener = False,
) -> Path | np.ndarray:
    """Bring back what `compress` wrote, exact to the bit: `vdm decompress`.

    Nothing is measured, no data are opened, and nothing is written into the run.

    Args:
        run: The run that the file was compressed by, or its directory.
        file: The .vdmz file.
        path: A new folder for single images, or a new .npy file; None: return an array.
        device: As at `compress`.
        threads: As at `compress`; a file of `fast` needs as many as it was made with.
        progress: As at `evaluate`.

    Returns:
        The path; without one, the array, with the type and the axes that it came from.

    Raises:
        InputError: Where the run does not have the model that the file needs, with what is missing;
            for images of several sizes without a folder; and, after all others were written, where
            some are damaged.

    Examples:
        >>> vd.decompress(run, "missing.vdmz")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        variational_diffusion.errors.InputError: ...
    """
    run = run if isinstance(run, Run) else Run.open(run)
    execution = Execution(device, threads)
    with ExitStack() as stack:
        container = stack.enter_context(_opened(expanded(file)))
        header = container.header
        portable = header.precision == "portable"
        stack.enter_context(execution.begun(follow=portable))
        unpacking = Unpacking(container, None if path is None else Path(path))
        vdm = _needed(run, container, execution)
        coder = ChainCoder(vdm, header.chain(), portable=portable)
        if path is None:
            return unpacking.array(coder, progress)
        written = unpacking.write(coder, progress)
    if unpacking.renamed:
        more = ", …" if len(unpacking.renamed) > 3 else ""
        shown = (f"{printable(old)} as {printable(new)}" for old, new in unpacking.renamed[:3])
        LOG.info(
            "note: %d images come back under another name, as .png where their own kind of file "
            "would not keep them: %s%s",
            len(unpacking.renamed),
            ", ".join(shown),
            more,
        )
    return written


def _originals(
    run: Run, vdm: VDM, data: Data | None, split: str | None, limit: int | None
) -> Originals:
    if data is None:
        own = Originals(chosen_examples(run, None, split, limit, condition="none"))
        for loss in islice(own.losses(), 1):
            LOG.info(
                "note: what comes back is the examples as the run reads them, and not the files: "
                "%s, for one",
                printable(loss),
            )
        return own
    if split is not None:
        raise InputError(
            f"split = '{split}' is of the run's own data: DATA is compressed as a whole; leave out "
            "--split, or DATA"
        )
    if isinstance(data, Dataset):
        data = data.everything()
    if isinstance(data, Split):
        originals, name = Originals(data), data.description
    else:
        data = data if isinstance(data, str | Path) else in_order(data)
        config = run.config.data.model_copy(update={"condition": None})
        originals = open_originals(data, config, vdm.shape)
        name = str(data) if isinstance(data, str | Path) else f"array of shape {tuple(data.shape)}"
    if originals.levels != vdm.levels:
        raise InputError(
            f"data = '{name}' has levels {originals.levels}: the model in '{run.path}' takes "
            f"levels {vdm.levels}"
        )
    return originals if limit is None else originals.sample(limit)


@contextmanager
def _opened(file: Path) -> Iterator[Container]:
    try:
        stream = file.open("rb")
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise InputError(f"'{file}' cannot be read: {reason}") from error
    with stream:
        yield Container(stream, str(file))


def _kept_path(run: Run, digest: str) -> Path:
    return run.path / _KEPT / f"{digest}.safetensors"


def _keep(run: Run, vdm: VDM, digest: str, weights: str, variance: str) -> None:
    """Keep the model of a chain in the run, where it is not kept yet and the run can be written."""
    path = _kept_path(run, digest)
    if path.exists():
        return
    errors = vdm.reverse_errors
    head = errors.head if isinstance(errors, PredictedErrors) else None
    about = {"weights": weights, "variance": variance}
    if isinstance(head, VarianceHead):
        about["head"] = json.dumps(head.options)
    with cached("the model, without which the file is not decoded once the run was trained on,"):
        path.parent.mkdir(exist_ok=True)
        run.write(path, "kept", model_state(vdm), about)


def _needed(run: Run, container: Container, execution: Execution) -> VDM:
    """Return the model that a file names: what was kept of it, or else what the run has now."""
    header, kept = container.header, _kept_path(run, container.header.model)
    if kept.exists():
        tensors, about = run.read(kept, "kept")
        model = run.build().eval().requires_grad_(False).prepare(execution)
        head = None
        if "head" in about:
            head = VarianceHead(run.config.model.shape, **json.loads(about["head"]))
            head = head.eval().requires_grad_(False).to(model.device)
        vdm = with_state(model, tensors, head)
        if model_digest(vdm) != header.model:
            raise InputError(
                f"'{kept}' holds another model than its name says: bring back the file that was "
                "there"
            )
        return vdm
    try:
        trained = Trained.open(run, header.weights, execution)
        vdm = widened(trained, header.variance, measure=False)
    except InputError as error:
        raise InputError(
            f"'{container.name}' needs '{kept}', which is missing; without it: {error}"
        ) from error
    if model_digest(vdm) != header.model:
        raise InputError(
            f"'{container.name}' was compressed by another model than the {header.weights} weights "
            f"and the variance '{header.variance}' of '{run.path}' are now, and '{kept}' is "
            "missing; give the run it was compressed by, or bring that file back"
        )
    return vdm
