"""One step is one step: the same in any number of parts and of processes, with dropout too."""

import os
from itertools import count, product

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from variational_diffusion.config import Component, ModelConfig, TrainingConfig
from variational_diffusion.machine.distributed import here
from variational_diffusion.model import VDM, build
from variational_diffusion.schedules import SCHEDULES
from variational_diffusion.training import Engine, TrainingState, fit

BATCH, LEVELS = 8, 17
DROPOUTS = (0.0, 0.1)
CASES = list(product(SCHEDULES, DROPOUTS))


def a_model(schedule: str, dropout: float) -> VDM:
    """A model in float64, away from its initialisation, a step before it measures its ends."""
    ends = {"gamma_min": -7.9, "gamma_max": 5.0}
    small = {"hidden": 8} if schedule == "monotone" else {}
    network = {**ends, "levels": LEVELS, "width": 16, "blocks": 2, "dropout": dropout}
    config = ModelConfig(
        shape=(1, 2, 3),
        decoder=Component(name="discretized", options={"levels": LEVELS}),
        schedule=Component(name=schedule, options={**ends, **small}),
        network=Component(name="mlp", options=network),
    )
    vdm = build(config).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in vdm.network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).double()
    vdm.schedule.set_extra_state(torch.tensor(63))
    return vdm


def three_steps(schedule: str, dropout: float, parts: int) -> dict[str, torch.Tensor]:
    """Return all gradients of three steps, and the state after them."""
    config = TrainingConfig(steps=3, warmup_steps=0, learning_rate=1e-3, optimizer="adamw")
    state = TrainingState.start(a_model(schedule, dropout), config)
    found: dict[str, torch.Tensor] = {}

    def see(*_: object) -> None:
        for name, parameter in state.vdm.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {name}, step {state.step}"] = parameter.grad.clone()

    state.optimizers["adamw"].register_step_pre_hook(see)
    place = here()
    bound = DistributedDataParallel(state.vdm) if place.processes > 1 else None
    rows = (
        torch.randint(0, LEVELS, (BATCH, 1, 2, 3), generator=torch.Generator().manual_seed(k))
        for k in count()
    )
    mine = (batch[place.rows(BATCH)] for batch in rows)
    for record in fit(state, mine, config, engine=Engine(bound, parts)):
        assert not record.skipped
    return found | {name: value.clone() for name, value in state.vdm.state_dict().items()}


def one_of_two(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    found = {(*case, parts): three_steps(*case, parts) for case in CASES for parts in (1, 2, 4)}
    torch.distributed.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """What each of two processes found in all cases."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("schedule", "dropout"), CASES)
def test_parts_and_processes_make_the_step_of_the_whole(schedule, dropout, by_two):
    whole = three_steps(schedule, dropout, 1)
    assert len(whole) > 60
    if schedule in ("monotone", "adaptive", "learned-linear"):
        assert whole["schedule.end_errors"].min() > 0
        assert whole["gradient schedule.log_stretch, step 1"].abs().min() > 1e-4
    found = [three_steps(schedule, dropout, parts) for parts in (2, 4)]
    found += [rank[schedule, dropout, parts] for rank in by_two for parts in (1, 2, 4)]
    for other in found:
        assert other.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_dropout_is_in_the_step():
    """So that the test above is not one of nothing."""
    plain, dropped = (
        three_steps("adaptive", dropout, 1)["network.dense_in.weight"] for dropout in DROPOUTS
    )
    assert (plain - dropped).abs().max() > 1e-4
