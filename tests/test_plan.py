"""Plans: what is counted is what a step does, and estimates keep to their closed forms."""

import dataclasses
import json
import re
from functools import cache
from itertools import repeat

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from variational_diffusion.cli import run
from variational_diffusion.config import Component
from variational_diffusion.errors import InputError
from variational_diffusion.model import build
from variational_diffusion.presets import parts
from variational_diffusion.run.plan import (
    HARDWARE,
    Hardware,
    estimate,
    footprint,
    measure,
    plan,
)
from variational_diffusion.run.plan.counting import FLOP_FORMULAS, Operation
from variational_diffusion.run.plan.estimates import seconds
from variational_diffusion.training import TrainingState, fit
from variational_diffusion.training.sharding import recompute_activations

H100 = HARDWARE["h100"]
SMALL = {"training.steps": 9, "training.batch_size": 8, "network.widths": [16, 24]}


def configured(shape=(1, 12, 12), network=None, **settings):
    chosen = SMALL if network is None else {"training.steps": 9, "training.batch_size": 8}
    return parts(
        shape,
        256,
        Component(name="discretized", options={"levels": 256}),
        network=network,
        settings={**chosen, **settings},
    )


@cache
def counted(batch=8, **options):
    """The plan of the small network; counted once for all tests."""
    return footprint(*configured(), batch, **options)


@pytest.fixture(scope="module")
def step():
    return counted(on_cpu=False)


@pytest.mark.parametrize(
    ("network", "settings", "checkpointing"),
    [
        (None, {"network.attention": True, "network.widths": [8]}, True),
        ("transformer", {"network.depth": 1, "network.width": 24}, False),
        ("paper-unet", {"network.width": 16, "network.blocks": 1}, False),
    ],
)
def test_operations_are_those_of_a_real_step(network, settings, checkpointing):
    """To the last one: an attention, a gradient or an optimiser left out would show."""
    model, training = configured(network=network, **settings)
    plan = footprint(model, training, 8, checkpointing=checkpointing)
    vdm = build(model)
    if checkpointing:
        recompute_activations(vdm.network)
    x = torch.zeros(8, 1, 12, 12, dtype=torch.int64)
    steps = fit(TrainingState.start(vdm, training), repeat(x), training)
    next(steps)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        next(steps)
    counted = sum(o.flops for o in plan.forward + plan.backward + plan.update)
    assert counted == counter.get_total_flops()
    assert plan.parameters == sum(p.numel() for p in vdm.parameters())


def test_activations_are_those_that_autograd_keeps():
    """Distinct storages that saved tensors of a real pass hold, weights left out."""
    vdm = build(configured()[0])
    weights = {p.untyped_storage().data_ptr() for p in vdm.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    z, gamma = torch.zeros(32, 1, 12, 12), torch.zeros(32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = vdm.denoise(z, gamma).noise
    assert output.requires_grad
    plan = counted(32)
    assert sum(kept.values()) == pytest.approx(plan.kept, rel=0.05)


def test_memory_grows_in_proportion_to_the_batch(step):
    sixteen, thirty_two = (counted(n, on_cpu=False) for n in (16, 32))
    assert 2 * (sixteen.kept - step.kept) == pytest.approx(thirty_two.kept - sixteen.kept, rel=0.01)
    assert step.kept < step.peak < sixteen.peak
    assert step.weights == 4 * step.parameters
    assert step.average == 3 * step.weights
    alone = footprint(*configured(**{"training.posthoc_ema": False}), 8)
    assert alone.average == alone.weights


def test_states_are_one_average_for_muon_and_two_for_adamw():
    vectors = counted()
    both = footprint(*configured(**{"training.optimizer": "adamw"}), 8)
    assert both.optimizer == pytest.approx(2 * both.weights, rel=0.01)
    assert vectors.gradients < vectors.update_peak < 4 * vectors.gradients
    assert vectors.weights < vectors.optimizer < 1.3 * vectors.weights


def test_checkpointing_trades_operations_for_memory(step):
    less = counted(on_cpu=False, checkpointing=True)
    assert less.kept < 0.6 * step.kept
    assert 1.2 * step.training_flops < less.training_flops < 1.4 * step.training_flops


def test_bfloat16_halves_most_activations():
    full = counted(32)
    half = counted(32, precision="bfloat16")
    on_gpu = counted(32, precision="bfloat16", on_cpu=False)
    assert 0.5 * full.kept < half.kept < 0.8 * full.kept
    assert half.kept < on_gpu.kept  # normalisation in float32
    assert {o.precision for o in half.forward if o.flops} == {"bfloat16", "float32", "tf32"}


def test_an_operation_takes_what_is_longest():
    simple = dataclasses.replace(
        H100,
        peak={"float32": 10.0},
        achieved={"float32": 0.5},
        bandwidth=10 / 0.8,
        operation_seconds=1.0,
    )
    for flops, moved, expected in ((100, 10, 20.0), (10, 100, 10.0), (1, 1, 1.0)):
        assert seconds([Operation(flops, moved, "float32")], simple) == pytest.approx(expected)


def test_passes_trade_memory_for_time(step):
    quarter = counted(2, on_cpu=False)
    found, whole = estimate(quarter, H100, passes=4), estimate(step, H100)
    assert found.memory.activations == pytest.approx(whole.memory.activations / 4, rel=0.1)
    assert found.seconds > whole.seconds


def test_figures_of_hardware_are_in_their_units():
    for name, hardware in HARDWARE.items():
        assert hardware.peak.keys() == hardware.achieved.keys() == {"float32", "tf32", "bfloat16"}
        assert hardware.peak["float32"] <= hardware.peak["tf32"] <= hardware.peak["bfloat16"], name
        assert 1e13 < hardware.peak["bfloat16"] < 1e16
        assert 1e10 < hardware.memory < 1e12 < 1e13 / hardware.bandwidth * 1e12
        assert isinstance(hardware, Hardware)


PLAN = ["plan", "--shape", "1,12,12", "--batch-size", "8", "--set", "network.widths=[16,24]"]


def output(capsys, arguments, code=0):
    capsys.readouterr()
    assert run(arguments) == code
    return capsys.readouterr()


def test_plan_prints_one_json_object(capsys):
    arguments = [*PLAN, "--hardware", "h100", "--accumulate", "4", "--json"]
    found = json.loads(output(capsys, arguments).out)
    assert found["batch_of_a_pass"] == 2
    assert [row["batch"] for row in found["memory"]] == [1, 2, 4, 8]
    assert list(found["hardware"]) == ["h100"]
    here = found["hardware"]["h100"]
    assert here["hours"] == pytest.approx(100_000 / here["steps_per_second"] / 3600)
    assert here["kilowatt_hours"] == pytest.approx(here["hours"] * 0.7)
    assert here["images_per_second"] == pytest.approx(8 * here["steps_per_second"])
    assert found["memory"][1]["total"] == pytest.approx(here["memory"])


def test_plan_of_data_measures_this_machine(capsys, monkeypatch):
    arguments = ["plan", "digits", *PLAN[3:], "--measure", "--threads", "1"]
    monkeypatch.setattr(measure, "_SECONDS", 0.05)
    printed = output(capsys, arguments).out
    assert all(word in printed for word in ("parameters", "rtx-4090", "this machine"))
    lines = {
        line.split()[1]: line.split() for line in printed.splitlines() if len(line.split()) > 7
    }
    assert float(lines["flops"][-2]) == 1
    assert 0.5 < float(lines["memory"][-2]) < 2
    assert 0.02 < float(re.search(r"seconds .* ([0-9.]+) │$", printed, re.MULTILINE)[1]) < 50


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan"], "data = None and shape = None: give one of them"),
        (["plan", "digits", "--shape", "1,8,8"], "give one of them"),
        (["plan", "--shape", "8x8"], "'8x8' is not a shape: give one as 3,32,32"),
        ([*PLAN, "--accumulate", "16"], "batch_size = 8: 16 passes take at least 16"),
        ([*PLAN, "--preset", "huge"], "preset = 'huge': known are tiny"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, told):
    error = output(capsys, arguments, code=2).err
    assert told in error
    assert error.count("\n") == 1


def test_the_command_and_the_function_give_one_plan(capsys):
    found = plan(*configured(), hardware=["l4", "h200"], accumulate=2, precision="float32")
    small = ["--set", "network.widths=[16,24]", "--steps", "9", "--batch-size", "8"]
    typed = [
        "--hardware",
        "l4",
        "--hardware",
        "h200",
        "--accumulate",
        "2",
        "--precision",
        "float32",
    ]
    told = output(capsys, ["plan", "--shape", "1,12,12", *small, *typed, "--json"]).out
    assert json.loads(told) == json.loads(json.dumps(found.as_json()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hardware": ["abacus"]}, "hardware = 'abacus': known are"),
        ({"precision": "half"}, "precision = 'half': known are auto"),
    ],
)
def test_unknown_names_are_told(options, told):
    with pytest.raises(InputError, match=told):
        plan(*configured(), **options)
