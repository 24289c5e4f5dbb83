"""`vdm evaluate`: bits per dimension of data under a trained model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click
import numpy as np
import torch

from variational_diffusion import evaluations
from variational_diffusion.checkpoint import Run
from variational_diffusion.cli.chains import chain_of, chain_options, is_chain_option_given
from variational_diffusion.cli.columns import ENDINGS, check_target, file_column, write_columns
from variational_diffusion.cli.console import Meter, print_json, print_table
from variational_diffusion.cli.devices import speed_options, speed_up, use_device
from variational_diffusion.cli.examples import (
    check_free,
    chosen_examples,
    condition_option,
    examples_options,
)
from variational_diffusion.cli.options import command_line, device_options, weights_option
from variational_diffusion.cli.signals import stop_requested
from variational_diffusion.data import Split
from variational_diffusion.data.loader import ordered_batches
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import (
    DEQUANTISATIONS,
    ESTIMATORS,
    Chain,
    Estimate,
    Estimator,
    Flow,
    Importance,
    Infinite,
    Summary,
    bits_of_entries,
    example_columns,
    summarize,
    summary_rows,
)
from variational_diffusion.likelihood.summary import LEAST_DEGREES
from variational_diffusion.model import VDM
from variational_diffusion.numerics import derived_seed
from variational_diffusion.pictures import save_sheet
from variational_diffusion.processes import ALONE, DAYS, Place, processes, sum_over_processes

Round = list[Estimate]

_MAPS = 64
_NOT_OF_THE_FIGURES = {
    "run",
    "per_example",
    "maps",
    "as_json",
    "batch_size",
    "compile_mode",
    "channels_last",
} | {"device", "threads"}


@click.command()
@examples_options
@click.option(
    "--estimator",
    type=click.Choice(list(ESTIMATORS)),
    default="vlb",
    help="; ".join(f"{name}: {what}" for name, what in ESTIMATORS.items()) + ".",
)
@chain_options
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=2,
    help="vlb, discrete: network evaluations for each example in a round (default 2).",
)
@click.option(
    "--exact",
    is_flag=True,
    help="discrete: every step instead of a sample; ode, importance: the exact divergence.",
)
@click.option("--samples", type=click.IntRange(1), default=8, help="K of importance (default 8).")
@click.option(
    "--probes", type=click.IntRange(1), default=1, help="ode, importance: of the divergence."
)
@click.option(
    "--dequantisation",
    type=click.Choice(list(DEQUANTISATIONS)),
    help="ode, importance; default: truncated-normal for discrete data.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(1e-10, 0.1),
    default=1e-5,
    help="ode, importance: error of the solver (default 1e-5).",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Rounds of independent draws, whose spread gives the error of the draws; default: 2, or 1 "
    "for ode and importance.",
)
@click.option(
    "--target-se",
    type=click.FloatRange(0, min_open=True),
    help="Go on with rounds until the error of the draws is at most this, in bits/dim.",
)
@click.option("--per-example", help="Write the bits of every example as this .csv or .parquet.")
@click.option("--maps", help=f"Write where the bits of {_MAPS} examples are as this .png sheet.")
@click.option("--batch-size", type=click.IntRange(1), default=250, help="Examples at once.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the estimate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@condition_option
@weights_option
@speed_options
@device_options
def command(
    run: str,
    data: str | None,
    split: str,
    limit: int | None,
    estimator: str,
    rounds: int | None,
    target_se: float | None,
    per_example: str | None,
    maps: str | None,
    batch_size: int,
    seed: int,
    as_json: bool,
    condition: str,
    weights: str,
    compile_mode: str,
    channels_last: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Estimate −log p(x) of DATA under the model in RUN, in bits per dimension.

    Of a model with conditions it is −log p(x|c), of the examples' own conditions; --condition none
    leaves them out.

    DATA is read with the options that the run was trained with; without it, the run's own data
    are. Started by torchrun, the processes share the batches out; the figures do not change.
    """
    _check_chain_options(estimator, options)
    check_target("per_example", per_example, ENDINGS)
    check_target("maps", maps, (".png", ".webp"))
    target = use_device(device, threads)
    opened = Run.open(run)
    vdm = opened.load(weights).to(target)
    speed_up(vdm, compile_mode=compile_mode, channels_last=channels_last)
    if condition == "none":
        check_free(opened)
    examples = chosen_examples(opened, data, split, limit, condition=condition)
    if rounds is None:
        rounds = 1 if estimator in ("ode", "importance") else 2
    with processes(target, DAYS) as place:
        chosen = _estimator(estimator, opened, vdm, weights, options)
        done = evaluate_rounds(
            vdm,
            examples,
            chosen,
            rounds=rounds,
            target_error=target_se,
            batch_size=batch_size,
            seed=seed,
            place=place,
        )
        if not place.leads:
            return
        if per_example is not None:
            columns = example_columns(*done.rounds, dimensions=vdm.dimensions)
            table = {name: column.numpy() for name, column in columns.items()}
            rows = len(table["example"])  # fewer than examples where it was stopped
            files = {name: column[:rows] for name, column in file_column(examples).items()}
            write_columns(per_example, {"example": table.pop("example"), **files, **table})
            click.echo(f"per example: {per_example}", err=True)
        if done.stopped:
            count = sum(len(e.total) for e in done.rounds[0])
            click.echo(f"stopped after {count} of {len(examples)} examples", err=True)
            raise KeyboardInterrupt
        if maps is not None:
            write_maps(vdm, examples.limit(_MAPS), maps, seed=seed)
            click.echo(f"maps: {maps}", err=True)
    summary = summarize(*done.rounds, dimensions=vdm.dimensions)
    steps = options["steps"]
    conditioned = opened.config.data.condition if condition == "own" else None
    values = {
        "estimator": estimator,
        "split": split,
        **summary.as_json(),
        "condition": conditioned,
        "levels": opened.config.data.levels,
        "shape": list(vdm.shape),
        "weights": weights,
        "steps": steps,
        "rounds": len(done.rounds),
    }
    evaluations.record(
        opened,
        weights,
        values,
        data=data or opened.config.data.source,
        command=command_line("evaluate", _NOT_OF_THE_FIGURES),
    )
    if as_json:
        print_json(values)
        return
    chain = "" if steps is None else f", {steps} steps"
    if conditioned is not None:
        chain += f", given the {conditioned}"
    print_table(
        f"{run}: {split} split, {weights} weights, {estimator}{chain}",
        ["", ""],
        summary_rows(summary),
    )


class Rounds:
    """What `evaluate_rounds` came to: estimates by round and batch, and whether it was stopped."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.stopped = False


def evaluate_rounds(
    vdm: VDM,
    split: Split,
    estimator: Estimator,
    *,
    rounds: int = 1,
    target_error: float | None = None,
    batch_size: int = 250,
    seed: int = 0,
    place: Place = ALONE,
    quiet: bool = False,
    together: bool = False,
) -> Rounds:
    """Evaluate a split round by round, with a progress bar; a signal ends it between two batches.

    Batch b of round r has its own generator, seeded by (seed, r, b), so the figures do not depend
    on the number of processes.

    target_error: go on until the error of the draws is at most this, instead of so many `rounds`.
    quiet: without the bar, and to the end whatever signal comes. together: the network is sharded,
    so that every process has to evaluate as often as the others, for nothing if need be.
    """
    vdm.eval()
    device = vdm.schedule.gamma_0.device
    done = Rounds()
    sizes = [min(batch_size, len(split) - i) for i in range(0, len(split), batch_size)]
    most = -(-len(sizes) // place.processes)
    with (
        Meter("evaluating", "examples") if place.leads and not quiet else nullcontext() as meter,
        nullcontext(lambda: False) if quiet else stop_requested() as stopped,
    ):
        while not done.stopped:
            number = len(done.rounds)
            own: dict[int, Estimate] = {}
            for batch, b in zip(
                ordered_batches(split, batch_size, part=place),
                range(place.rank, len(sizes), place.processes),
                strict=True,
            ):
                generator = torch.Generator(device).manual_seed(derived_seed(seed, number, b))
                model, x = vdm.given_in(batch)
                own[b] = estimator(model, x, generator)
                if meter is not None:
                    _show(meter, own, done, rounds, len(sizes) / place.processes, vdm.dimensions)
                if stopped():
                    break
            if together and len(own) < most:
                model, x = vdm.given_in(split.batch([0]))
                estimator(model, x)
            estimates = _gathered(own, sizes, estimator, place, device)
            done.rounds.append(estimates)
            done.stopped = len(estimates) < len(sizes)
            if done.stopped or _enough(done.rounds, rounds, target_error, vdm.dimensions):
                break
    return done


def evaluate_split(
    vdm: VDM,
    split: Split,
    *,
    draws: int = 2,
    rounds: int = 2,
    batch_size: int = 250,
    seed: int = 0,
) -> Summary:
    """Return the bound for infinitely many steps of a split, with a progress bar."""
    done = evaluate_rounds(
        vdm, split, Infinite(draws), rounds=rounds, batch_size=batch_size, seed=seed
    )
    if done.stopped:
        raise KeyboardInterrupt
    return summarize(*done.rounds, dimensions=vdm.dimensions)


def write_maps(vdm: VDM, split: Split, path: str, *, seed: int) -> None:
    """Write a sheet: every example beside a map of its bits, dark for few and light for many."""
    model, x = vdm.given_in(next(ordered_batches(split, len(split))))
    generator = torch.Generator(x.device).manual_seed(seed)
    bits = bits_of_entries(model, x, generator=generator).cpu().double().numpy()
    bits = bits.mean(1, keepdims=True)  # over the channels
    low, high = np.quantile(bits, [0.01, 0.99])
    shown = np.clip((bits - low) / max(high - low, 1e-9), 0, 1).repeat(x.shape[1], axis=1)
    levels = vdm.decoder.levels if isinstance(vdm.decoder, Discretized) else None
    images = x.cpu().double().numpy()
    least, most = (0.0, levels - 1.0) if levels else (images.min(), images.max())
    images = (images - least) / max(most - least, 1e-9)
    pairs = np.stack([images, shown], axis=1).reshape(-1, *x.shape[1:])
    save_sheet(pairs, None, path, columns=16, value_range=(0.0, 1.0))


def _estimator(name: str, run: Run, vdm: VDM, weights: str, options: dict[str, Any]) -> Estimator:
    exact = options["exact"]
    if name == "vlb":
        return Infinite(options["draws"])
    if name == "discrete":
        gammas = chain_of(run, vdm, weights, options)
        return Chain(gammas, None if exact else options["draws"])
    flow = Flow(
        options["dequantisation"], None if exact else options["probes"], options["tolerance"]
    )
    return flow if name == "ode" else Importance(options["samples"], flow)


def _show(
    meter: Meter, own: dict[int, Estimate], done: Rounds, rounds: int, batches: float, d: int
) -> None:
    finished = len(done.rounds) + len(own) / batches
    examples = sum(len(e.total) for row in [*done.rounds, own.values()] for e in row)
    meter.update(
        min(1.0, finished / max(rounds, len(done.rounds) + 1)),
        examples,
        lambda: f"{summarize(own.values(), dimensions=d).bits_per_dim:.3f} bits/dim",
    )


def _enough(rounds: list[Round], count: int, target: float | None, dimensions: int) -> bool:
    if target is None:
        return len(rounds) >= count
    summary = summarize(*rounds, dimensions=dimensions)
    return summary.degrees >= LEAST_DEGREES and summary.draws_error <= target


def _gathered(
    own: dict[int, Estimate],
    sizes: list[int],
    estimator: Estimator,
    place: Place,
    device: torch.device,
) -> Round:
    """Return the estimates of all processes in the order of the batches, up to a missing one."""
    if place.processes > 1:
        own = _from_all(own, sizes, estimator, device)
    ordered: Round = []
    for b in range(len(sizes)):
        if b not in own:
            break
        ordered.append(own[b])
    return ordered


def _from_all(
    own: dict[int, Estimate], sizes: list[int], estimator: Estimator, device: torch.device
) -> dict[int, Estimate]:
    """Return everybody's estimates: each fills its rows of a table of zeros, and they are added."""
    names = estimator.terms
    terms = torch.zeros(len(names), sum(sizes), dtype=torch.float64, device=device)
    counts = torch.zeros(3, len(sizes), dtype=torch.float64, device=device)
    parts = terms.split(sizes, dim=1)
    for b, estimate in own.items():
        parts[b].copy_(torch.stack([estimate.terms[name] for name in names]))
        counts[:, b] = counts.new_tensor([1, estimate.evaluations, estimate.failures])
    terms, counts = sum_over_processes(terms).cpu(), sum_over_processes(counts).cpu()
    return {
        b: Estimate(dict(zip(names, part, strict=True)), int(evaluations), int(failures))
        for b, (part, (there, evaluations, failures)) in enumerate(
            zip(terms.split(sizes, dim=1), counts.T.tolist(), strict=True)
        )
        if there
    }


def _check_chain_options(estimator: str, options: dict[str, Any]) -> None:
    steps = options["steps"]
    if (estimator == "discrete") != (steps is not None):
        raise InputError(
            f"estimator = {estimator!r}, steps = {steps}: --steps goes with "
            "--estimator discrete, and is needed there"
        )
    if estimator != "discrete" and is_chain_option_given(options):
        raise InputError(
            f"estimator = {estimator!r}: --grid and --variance go with --estimator discrete"
        )
