"""A trained model as a folder that the Hugging Face hub understands.

    config.json         format, version, and the model as `ModelConfig` describes it
    model.safetensors   the weights, with a digest
    README.md           the model card: what the model is, and what was measured of it

This module holds what `VDM.from_pretrained`, `save_pretrained` and `push_to_hub` read and write.
Nothing is pickled. huggingface_hub is imported where it is used: every command would wait a tenth
of a second for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from variational_diffusion.config import ModelConfig, digest_of_json, validated
from variational_diffusion.errors import InputError, needs
from variational_diffusion.escaping import code, json_text, markdown, parsed_json
from variational_diffusion.machine import environment
from variational_diffusion.storage.files import atomic_folder, expanded
from variational_diffusion.storage.tensors import read_metadata, write_tensors

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

FORMAT = 1
"""Version of the folder; one of a newer version is refused."""

LIBRARY = environment.DISTRIBUTION
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

Evaluations = Sequence[Mapping[str, Any]]
"""Measured likelihoods, each with the entries that `evaluations.record` keeps."""


def write_folder(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], card: ModelCard
) -> None:
    """Write `config.json`, `model.safetensors` and the card as a new folder, whole or not."""
    values = {
        "format": FORMAT,
        "library_name": LIBRARY,
        "version": environment.version(),
        "model": config.model_dump(mode="json"),
    }
    with atomic_folder(folder) as made:
        (made / CONFIG).write_text(json_text(values, indent=2) + "\n", encoding="utf-8")
        write_tensors(made / WEIGHTS, tensors, {"config": digest_of_json(values)})
        (made / CARD).write_text(card.content, encoding="utf-8")


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    **commit: Any,
) -> str:
    """Upload a folder to a repository, made if need be; return the address of the commit."""
    from huggingface_hub import HfApi  # noqa: PLC0415 (a tenth of a second)

    api = HfApi(token=token)
    made = api.create_repo(repository, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=made, folder_path=folder, **commit))


def fetch(place: str, **download: Any) -> Path:
    """Return the folder of a model: `place` itself, or the hub's files in their local cache.

    download: arguments of `hf_hub_download`, such as revision; for a repository only.
    Raises InputError when there is neither such a folder nor such a repository.
    """
    if os.path.isdir(expanded(place)):
        return expanded(place)
    with needs("hub"):
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 (a tenth of a second)
        from huggingface_hub.errors import (  # noqa: PLC0415
            HFValidationError,
            HTTPError,
            LocalEntryNotFoundError,
        )

    try:
        files = [hf_hub_download(place, name, **download) for name in (CONFIG, WEIGHTS)]
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"'{place}' is no folder, and the hub does not give it ({reason}): give a folder, or "
            "the OWNER/NAME of a repository that can be read"
        ) from error
    return Path(files[0]).parent


def read_config(folder: Path) -> ModelConfig:
    """Return the configuration that `write_folder` wrote.

    Raises InputError when a file is missing, damaged, too new, or not of this package.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"'{folder}' has no {name}: it is no folder of a pretrained model")
    text = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    try:
        values = parsed_json(text)
    except ValueError as error:
        raise InputError(f"'{folder}': {CONFIG} is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("library_name") != LIBRARY:
        raise InputError(
            f"'{folder}' holds no model of {LIBRARY}; give a folder that save_pretrained or "
            "vdm export --hub wrote"
        )
    if values.get("format") != FORMAT:
        raise InputError(
            f"'{folder}' has format {values.get('format')!r}, this version reads {FORMAT}: "
            f"update {LIBRARY}"
        )
    about = read_metadata(folder / WEIGHTS)
    digest = about.get("config")
    earlier = digest is None and "run" not in about  # versions that wrote none
    if not earlier and digest != digest_of_json(values):
        raise InputError(
            f"'{folder}': {CONFIG} does not match the digest in {WEIGHTS}: it is damaged, was "
            "changed by hand, or belongs to another model; restore the pair"
        )
    try:
        return validated(ModelConfig, values.get("model", {}))
    except InputError as error:
        raise InputError(f"'{folder}': {CONFIG}: {error}") from error


def card(
    config: ModelConfig | None,
    parameters: int,
    *,
    evaluations: Evaluations = (),
    facts: Mapping[str, str] | None = None,
) -> ModelCard:
    """Return the model card, with metadata that the hub shows.

    Args:
        config: Of the model; None: what is known without it.
        parameters: Number of parameters.
        evaluations: What was measured of these weights; where there is none, the card says so.
        facts: More rows for its table, such as how it was trained.
    """
    with needs("hub"):
        from huggingface_hub import ModelCard, ModelCardData  # noqa: PLC0415 (a tenth of a second)

    shape = config.shape if config else ()
    is_image = len(shape) == 3 and shape[0] in (1, 3, 4)
    results = [_result(measured) for measured in evaluations]
    data = ModelCardData(
        library_name=LIBRARY,
        tags=["density-estimation", "diffusion", "variational-diffusion-model"],
        pipeline_tag="unconditional-image-generation" if is_image else None,
        model_name="variational diffusion model" if results else None,
        eval_results=results or None,
    )
    stated = {name: markdown(value) for name, value in (facts or {}).items()}
    rows = {"parameters": f"{parameters:,}", **stated}
    if config is not None:
        parts = {
            name: f"{code(part.name)} {markdown(_options(part.options))}"
            for name, part in (
                ("decoder", config.decoder),
                ("noise schedule", config.schedule),
                ("network", config.network),
            )
        }
        rows = {"shape": "×".join(map(str, shape)), **parts, "predicts": config.prediction} | rows
    table = "\n".join(f"| {markdown(name)} | {value} |" for name, value in rows.items())
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n"
        "# Variational diffusion model\n\n"
        "A density model: it gives likelihoods in bits per dimension, and samples.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"## Bits per dimension\n\n{_measured(evaluations)}\n\n"
        "## Use\n\n"
        "```python\n"
        "from variational_diffusion import VDM\n\n"
        'vdm = VDM.from_pretrained("OWNER/NAME")  # or a folder\n'
        "samples = vdm.sample(4)\n"
        "```\n\n"
        "Method: Kingma, Salimans, Poole, Ho, "
        "[Variational Diffusion Models](https://arxiv.org/abs/2107.00630) (2021).\n"
    )


def _measured(evaluations: Evaluations) -> str:
    if not evaluations:
        return "Not measured."
    lines = [
        "| data | examples | estimator | bits/dim | command |",
        "| --- | --- | --- | --- | --- |",
    ]
    for measured in evaluations:
        error = measured["standard_error"]
        figure = f"{measured['bits_per_dim']:.4f}" + (f" ± {error:.4f}" if error else "")
        older = f"{measured['examples']:,} {measured['split']} examples"
        lines.append(
            f"| {markdown(measured['data'])} | {markdown(measured.get('description', older))} "
            f"| {markdown(measured['estimator'])} | {figure} | {code(measured['command'])} |"
        )
    note = (
        "Means over the examples, less is better; ± is one standard error, of the choice of the "
        "examples and of the draws together. `vlb` and `discrete` are upper bounds on "
        "−log p(x), for infinitely many and for finitely many steps."
    )
    return "\n".join([*lines, "", note])


def _result(measured: Mapping[str, Any]) -> EvalResult:
    from huggingface_hub import EvalResult  # noqa: PLC0415 (a tenth of a second)

    return EvalResult(
        task_type="density-estimation",
        dataset_type=measured["data"],
        dataset_name=measured["data"],
        dataset_split=measured["split"],
        metric_type="bits_per_dim",
        metric_name=f"bits per dimension ({measured['estimator']})",
        metric_value=round(measured["bits_per_dim"], 4),
    )


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())
