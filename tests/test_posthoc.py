"""Averages of a width chosen afterwards: against sums over a recorded trajectory, in float64."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from variational_diffusion.cli import run as vdm
from variational_diffusion.config import DataConfig
from variational_diffusion.data import open_dataset
from variational_diffusion.errors import InputError
from variational_diffusion.model import build
from variational_diffusion.presets import configure
from variational_diffusion.run import averages
from variational_diffusion.run.directory import Run
from variational_diffusion.storage.tensors import read_tensors
from variational_diffusion.training import TrainingState, fit
from variational_diffusion.training.posthoc import (
    WIDTHS,
    PowerAverages,
    Profile,
    exponent,
    mixture,
    overlaps,
)

DIGITS = DataConfig(source="digits")
STEPS = 2400


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25, math.sqrt(1 / 12)])
def test_an_exponent_has_the_width_it_was_asked_for(width):
    gamma = exponent(width)
    u = (np.arange(400_000) + 0.5) / 400_000
    p = (gamma + 1) * u**gamma
    mean = (p * u).mean()
    assert math.sqrt((p * (u - mean) ** 2).mean()) == pytest.approx(width, rel=1e-6)


def test_the_widths_of_the_paper_have_its_exponents():
    """Karras et al. (2024), section 3: 16.97 and 6.94; the plain average has γ = 0."""
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)
    assert exponent(math.sqrt(1 / 12)) == pytest.approx(0, abs=1e-9)


def test_overlaps_are_the_integrals():
    a = [Profile(700, 0.05), Profile(1000, 0.1)]
    b = [Profile(900, 0.2), Profile(1000, 0.07)]
    tau = np.arange(200_000) * 0.005 + 0.0025

    def p(step, width):
        gamma = exponent(width)
        return np.where(tau <= step, (gamma + 1) / step * (tau / step) ** gamma, 0)

    expected = [[(p(*one) * p(*other)).sum() * 0.005 for other in b] for one in a]
    np.testing.assert_allclose(overlaps(a, b), expected, rtol=2e-5)


class Weights(nn.Module):
    """Weights that follow a given path."""

    def __init__(self, path: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(path[0].clone())
        self.path = path

    def go(self, step: int) -> None:
        with torch.no_grad():
            self.weight.copy_(self.path[step - 1])


def shares(width: float, steps: int) -> torch.Tensor:
    """The share of the weights of step i, which hold from i − 1 to i: ((i)^g − (i − 1)^g)/t^g."""
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (exponent(width) + 1)
    return edges.diff()


def averages_along(path: torch.Tensor, at: list[int], widths=WIDTHS):
    model = Weights(path)
    averages = PowerAverages(model, widths)
    kept = {}
    for step in range(1, max(at) + 1):
        model.go(step)
        averages.update()
        if step in at:
            kept[step] = {
                width: averages.state_dict()[f"{width}.weight"].clone() for width in widths
            }
    return kept


@pytest.fixture(scope="module")
def trajectory():
    """Weights that fall towards a goal and shake on the way, as those of a training run."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(STEPS, 20, dtype=torch.float64, generator=generator)
    time = torch.arange(1, STEPS + 1, dtype=torch.float64)[:, None] / STEPS
    goal = torch.randn(20, dtype=torch.float64, generator=generator)
    return goal * torch.exp(-3 * time) + 0.02 * noise.cumsum(0) / 10


def test_updates_give_the_sum_in_closed_form(trajectory):
    kept = averages_along(trajectory, [1, 2, 700])
    for width in WIDTHS:
        torch.testing.assert_close(kept[1][width], trajectory[0])
        for step in (2, 700):
            expected = shares(width, step) @ trajectory[:step]
            torch.testing.assert_close(kept[step][width], expected, rtol=0, atol=1e-12)


def test_weights_that_grow_linearly_have_the_mean_of_the_profile():
    """E[τ] = t (γ + 1)/(γ + 2), plus half a step as weights hold from i − 1 to i."""
    line = torch.arange(1, 4001, dtype=torch.float64)[:, None]
    kept = averages_along(line, [4000], [0.05, 0.1])
    for width in WIDTHS:
        gamma = exponent(width)
        mean = 4000 * (gamma + 1) / (gamma + 2)
        assert kept[4000][width].item() == pytest.approx(mean + 0.5, abs=0.01)


def reconstructed(kept, width, step=STEPS):
    coefficients, rest = mixture(
        [Profile(at, w) for at in kept for w in WIDTHS], Profile(step, width)
    )
    stack = torch.stack([kept[at][w] for at in kept for w in WIDTHS])
    return torch.from_numpy(coefficients) @ stack, rest


def test_reconstruction_comes_close_and_closer_with_more_snapshots(trajectory):
    every = averages_along(trajectory, list(range(75, STEPS + 1, 75)))
    for width in (0.03, 0.07, 0.15, 0.2):
        true = shares(width, STEPS) @ trajectory
        moved = (trajectory[-1] - true).norm()  # what there is to get wrong
        errors, rests = [], []
        for spacing in (600, 300, 150, 75):
            kept = {step: every[step] for step in every if step % spacing == 0}
            found, rest = reconstructed(kept, width)
            errors.append(float((found - true).norm() / moved))
            rests.append(rest)
        assert errors[-1] < 0.01
        assert errors[-1] < errors[1] < errors[0]
        assert rests == sorted(rests, reverse=True)
        assert rests[-1] < 0.012


def test_a_stored_width_comes_back_as_it_was_stored(trajectory):
    kept = averages_along(trajectory, [*range(100, STEPS, 100), STEPS - 1, STEPS])
    for width in WIDTHS:
        found, rest = reconstructed(kept, width)
        torch.testing.assert_close(found, kept[STEPS][width], rtol=0, atol=1e-9)
        assert rest < 1e-6


def test_weights_that_stay_are_kept_for_any_width():
    still = torch.full((STEPS, 3), 0.7, dtype=torch.float64)
    kept = averages_along(still, [800, 1600, STEPS])
    for width in (0.02, 0.25):
        found, _ = reconstructed(kept, width)
        torch.testing.assert_close(found, still[0])


def plain(model: nn.Module) -> nn.Module:
    return model


def compiled(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")  # in place, as `vdm train --compile` does
    return model


def sharded(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def test_wrapped_compiled_and_sharded_models_have_the_averages_of_plain_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    found = {}
    try:
        for wrapper in (plain, compiled, sharded, DistributedDataParallel):
            torch.manual_seed(3)
            model = nn.Linear(5, 4)
            call = wrapper(model)
            averages = PowerAverages(model)
            optimizer = torch.optim.SGD(call.parameters(), lr=0.1)
            for _ in range(3):
                call(torch.ones(2, 5)).square().sum().backward()
                optimizer.step()
                averages.update()
            state = averages.state_dict().items()
            found[wrapper] = {
                name: value.full_tensor() if isinstance(value, DTensor) else value
                for name, value in state
            }
            again = PowerAverages(model)
            again.load_state_dict(averages.state_dict(), updates=3)
            for name, value in again.state_dict().items():
                assert torch.equal(value, averages.state_dict()[name])
    finally:
        torch.distributed.destroy_process_group()
    assert next(iter(found[plain])) == "0.05.weight"
    for values in found.values():
        torch.testing.assert_close(values, found[plain])


def test_snapshots_are_thinned_as_a_run_grows():
    assert averages.interval(1) == averages.interval(1500) == 50
    assert averages.interval(1501) == averages.interval(3000) == 100
    for step in (1_600, 44_000, 10_000_000):
        assert 15 <= step // averages.interval(step) <= 30


def small_run(path, **settings: object) -> tuple[Run, TrainingState]:
    digits = open_dataset(DIGITS)
    settings = {"network.widths": [8, 8], "network.blocks": 1, "training.steps": 9} | settings
    config = configure(DIGITS, digits, settings={"training.batch_size": 4, **settings})
    return Run.start(path, config), TrainingState.start(build(config.model), config.training)


def advance(run: Run, state: TrainingState, until: int) -> None:
    x = torch.randint(0, 17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    for record in fit(state, iter(lambda: x, None), run.config.training):
        averages.keep(run, state, last=record.progress >= 1)
        if record.step == until:
            break


def test_a_run_keeps_the_same_snapshots_with_and_without_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(averages, "_LEAST_INTERVAL", 1)
    monkeypatch.setattr(averages, "_MOST", 4)
    whole, state = small_run(tmp_path / "whole")
    advance(whole, state, 9)
    assert list(averages.stored(whole)) == [4, 8, 9]
    cut, state = small_run(tmp_path / "cut")
    advance(cut, state, 3)
    cut.save(state)
    advance(cut, state, 7)  # and a crash
    found = cut.resume()
    assert found is not None
    resumed = found.state
    averages.forget_after(cut, resumed.step)
    assert max(averages.stored(cut)) <= 3
    advance(cut, resumed, 9)
    files = [averages.stored(run) for run in (whole, cut)]
    assert files[0].keys() == files[1].keys()
    for step, path in files[0].items():
        found, expected = read_tensors(files[1][step])[0], read_tensors(path)[0]
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_average_of_a_stored_width_is_that_of_training(tmp_path):
    run, state = small_run(tmp_path)
    advance(run, state, 9)
    assert state.power_averages is not None
    made = averages.reconstruct(run, 0.05)
    assert made.step == 9
    kept = state.power_averages.state_dict()
    for name, parameter in made.vdm.named_parameters():
        expected = kept[f"0.05.{name}"]  # but for half precision
        torch.testing.assert_close(parameter, expected, rtol=2**-11, atol=1e-7)
    for name, buffer in state.vdm.named_buffers():
        assert torch.equal(buffer, dict(made.vdm.named_buffers())[name])


def test_weights_too_large_for_half_precision_are_stored_as_they_are(tmp_path):
    run, state = small_run(tmp_path)
    with torch.no_grad():
        state.vdm.network.conv_in.weight.fill_(1e5)
    state.power_averages = PowerAverages(state.vdm)
    state.step = state.power_averages.updates = 1
    averages.keep(run, state, last=True)
    made = averages.reconstruct(run, 0.07).vdm.network.conv_in.weight
    torch.testing.assert_close(made, torch.full_like(made, 1e5))


def test_a_damaged_snapshot_is_named_and_can_be_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr(averages, "_LEAST_INTERVAL", 4)
    run, state = small_run(tmp_path)
    advance(run, state, 9)
    path = averages.stored(run)[4]
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"00000004.safetensors' is damaged.*remove this snapshot"):
        averages.reconstruct(run, 0.1)
    path.unlink()
    assert averages.reconstruct(run, 0.1).step == 9


def test_a_run_begun_without_averages_goes_on_without(tmp_path):
    run, state = small_run(tmp_path, **{"training.posthoc_ema": False})
    assert state.power_averages is None
    advance(run, state, 9)
    run.save(state)
    as_asked = run.config.training.model_copy(update={"posthoc_ema": True})
    later = Run(run.path, run.config.model_copy(update={"training": as_asked}))
    resumed = later.resume()
    assert resumed is not None
    assert resumed.state.power_averages is None
    with pytest.raises(InputError, match=r"no snapshots of averages: .*posthoc_ema=true"):
        averages.reconstruct(run, 0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    arguments = ["--steps", "30", "--batch-size", "8", "--set", "network.widths=[8,8]"]
    arguments += ["--set", "training.warmup_steps=0"]
    assert vdm(["train", "digits", "--run", path, *arguments]) == 0
    return path


def output(capsys, arguments, code=0):
    capsys.readouterr()
    assert vdm(arguments) == code
    return capsys.readouterr()


def test_the_command_compares_widths(capsys, trained):
    arguments = ["ema", trained, "--widths", "0.05,0.2", "--limit", "20"]
    found = json.loads(output(capsys, [*arguments, "--json"]).out)
    narrow, wide = found["widths"]
    assert narrow["bits_per_dim"] < found["ema"]["bits_per_dim"] < wide["bits_per_dim"]
    assert found["best"] == 0.05
    assert narrow["difference"] == pytest.approx(
        narrow["bits_per_dim"] - found["ema"]["bits_per_dim"]
    )
    assert found["ema"]["difference"] == 0
    told = output(capsys, arguments)
    assert "0.05 (best)" in told.out
    assert "vdm ema" in told.err


@pytest.mark.parametrize(
    ("options", "name"), [([], "ema-0.07"), (["--name", "ema-mine"], "ema-mine")]
)
def test_the_command_writes_weights_for_other_commands(capsys, trained, options, name):
    told = output(capsys, ["ema", trained, "--width", "0.07", *options])
    assert f"--weights {name}" in told.err
    evaluated = ["evaluate", trained, "--weights", name, "--limit", "8", "--json"]
    assert json.loads(output(capsys, evaluated).out)["weights"] == name
    expected = averages.reconstruct(Run.open(trained), 0.07).vdm.state_dict()
    found = Run.open(trained).load(name).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ema", "RUN", "--width", "0.5"], "width = 0.5: .* from 0.02 to 0.25; give --width 0.1"),
        (["ema", "RUN", "--widths", "a"], "'a' is no list of widths: give one as 0.03,0.05"),
        (["ema", "RUN", "--name", "ema-x"], "name = 'ema-x' goes with --width"),
        (["ema", "RUN", "--width", "0.1", "--name", "raw"], "name = 'raw' is what training writes"),
        (["ema", "RUN", "--width", "0.1", "--name", "../x"], r"names that begin with 'ema-'"),
        (["evaluate", "RUN", "--weights", "ema-9"], "'ema-9': .* has ema, raw.*vdm ema"),
        (["sample", "RUN", "--weights", "errors-ema"], "'ema' and 'raw' are, and names"),
    ],
)
def test_mistakes_are_one_line(capsys, trained, arguments, message):
    arguments = [trained if argument == "RUN" else argument for argument in arguments]
    told = output(capsys, arguments, code=2).err.splitlines()
    assert len(told) == 1
    assert re.search(message, told[0]), told


def test_the_command_and_the_functions_give_the_same(capsys, trained, tmp_path):
    typed = ["ema", trained, "--widths", "0.05,0.2", "--limit", "20", "--json"]
    told = json.loads(output(capsys, typed).out)
    found = averages.compare_widths(trained, (0.05, 0.2), limit=20)
    assert found.as_json() == told
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    typed = ["ema", str(path), "--width", "0.07", "--json"]
    assert averages.write_average(path, 0.07).as_json() == json.loads(output(capsys, typed).out)
