"""The schedule's gradients under what trains a model elsewhere: accumulation, precision, processes.

The gradients come with an ordinary backward pass; `one_step` says which passes are parts of one.
"""

import copy
import math
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from variational_diffusion import objective
from variational_diffusion.config import Component, ModelConfig
from variational_diffusion.model import build
from variational_diffusion.networks.dropout import Dropout, draw_keys, keyed

COUNT = 8


class Loss(nn.Module):
    """The diffusion loss of a model at given times and noise, in bits per dimension."""

    def __init__(self, schedule: str) -> None:
        super().__init__()
        ends = {"gamma_min": -7.9, "gamma_max": 5.0}
        small = {"hidden": 16} if schedule == "monotone" else {}
        config = ModelConfig(
            shape=(1, 4, 4),
            decoder=Component(name="discretized", options={"levels": 17}),
            schedule=Component(name=schedule, options={**ends, **small}),
            network=Component(name="mlp", options={**ends, "levels": 17, "width": 32}),
        )
        self.vdm = build(config)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            nn.init.normal_(self.vdm.network.dense_out.weight, std=0.2)

    def forward(self, x, t, noise):
        def predict_noise(z, gamma):
            return self.vdm.denoise(z, gamma).noise

        loss = objective.diffusion(predict_noise, self.vdm.schedule, x, t, noise)
        return loss.mean() / (16 * math.log(2))


def inputs():
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(COUNT, 1, 4, 4, generator=generator) - 1
    noise = torch.randn(x.shape, generator=generator)
    return x, torch.rand(COUNT, generator=generator), noise


def gradients(loss):
    return {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


def by_one_pass(schedule):
    loss = Loss(schedule)
    loss(*inputs()).backward()
    return gradients(loss)


def assert_same(found, expected, rtol=1e-4):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=rtol * scale)


SCHEDULES = pytest.mark.parametrize("schedule", ["monotone", "adaptive"])


@SCHEDULES
def test_shape_and_ends_have_gradients(schedule):
    found = by_one_pass(schedule)
    assert found["vdm.schedule.log_stretch"].abs().min() > 0
    if schedule == "monotone":
        assert found["vdm.schedule.raw_weight_3"].abs().max() > 0


@SCHEDULES
def test_batches_add_up_and_the_loss_may_be_scaled(schedule):
    """As in gradient accumulation and in mixed precision with a scaled loss."""
    loss = Loss(schedule)
    with loss.vdm.schedule.one_step():
        for parts in zip(*(values.split(COUNT // 4) for values in inputs()), strict=True):
            (1024 * loss(*parts) / 4).backward()
    found = {name: gradient / 1024 for name, gradient in gradients(loss).items()}
    assert_same(found, by_one_pass(schedule))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@SCHEDULES
def test_accelerate_may_wrap_it(schedule, precision):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    loss = Loss(schedule)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.0)
    wrapped, optimizer = accelerator.prepare(loss, optimizer)
    with loss.vdm.schedule.one_step():
        for parts in zip(*(values.split(COUNT // 2) for values in inputs()), strict=True):
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(*parts))
                optimizer.step()
    assert_same(gradients(loss), by_one_pass(schedule), rtol={"no": 1e-4, "bf16": 0.1}[precision])
    AcceleratorState._reset_state(reset_partial_state=True)


def compiled(rank: int, folder: str, schedule: str) -> None:
    loss = Loss(schedule)
    loss.vdm.network.compile(backend="aot_eager")
    loss(*inputs()).backward()
    torch.save(gradients(loss), f"{folder}/{rank}.pt")
    eager, layer, x = Dropout(0.3), Dropout(0.3), torch.randn(4, 10)
    layer.compile(backend="aot_eager")
    for keys in draw_keys(3, 4).unsqueeze(1):
        with keyed([eager], keys), keyed([layer], keys):
            assert torch.equal(layer(x), eager(x))


def test_a_compiled_network_gives_the_same(tmp_path):
    """In a process of its own: the shape checks of these tests do not compile."""
    torch.multiprocessing.spawn(compiled, (str(tmp_path), "monotone"), nprocs=1)
    assert_same(torch.load(tmp_path / "0.pt", weights_only=True), by_one_pass("monotone"))


def one_process(rank: int, folder: str, schedule: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    loss = Loss(schedule)
    wrapped = DistributedDataParallel(loss)
    wrapped(*(values.chunk(2)[rank] for values in inputs())).backward()
    torch.save((gradients(loss), loss.vdm.schedule.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@SCHEDULES
def test_two_processes_give_the_gradients_and_the_memory_of_one(schedule, tmp_path):
    torch.multiprocessing.spawn(one_process, (str(tmp_path), schedule), nprocs=2)
    alone = Loss(schedule)
    alone(*inputs()).backward()
    expected = copy.deepcopy(alone.vdm.schedule.state_dict())
    for rank in range(2):
        found, memory = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(found, gradients(alone))
        assert_same(memory, expected)


def test_a_wrapper_of_the_model_itself_is_called_as_the_bound():
    vdm = Loss("adaptive").vdm.eval()
    x = torch.randint(0, 17, (4, 1, 4, 4))
    first, second = (
        call(x, generator=torch.Generator().manual_seed(3)).total for call in (vdm, vdm.vlb)
    )
    torch.testing.assert_close(first, second)
