"""Simulations of many devices (benchmarks/cluster.py) keep to their closed forms."""

import dataclasses

import cluster as c
import pytest

from variational_diffusion.config import Component
from variational_diffusion.presets import parts
from variational_diffusion.run.plan import estimate, footprint

GB = 10**9
H100 = c.CLUSTERS["h100"]
LINES = H100.lines


@pytest.fixture(scope="module")
def step():
    model, training = parts(
        (1, 12, 12),
        256,
        Component(name="discretized", options={"levels": 256}),
        settings={"training.steps": 9, "training.batch_size": 8, "network.widths": [16, 24]},
    )
    return footprint(model, training, 8, on_cpu=False), c.blocks_of(model)


def test_exchanges_have_their_closed_forms():
    assert c.ring_all_reduce(8e9, 8, 2e9, 1e-3) == pytest.approx(2 * 7 / 8 * 4 + 14e-3)
    assert c.ring_all_gather(8e9, 8, 2e9, 1e-3) == pytest.approx(7 / 8 * 4 + 7e-3)
    assert c.tree_all_reduce(8e9, 9, 2e9, 1e-3) == pytest.approx(2 * (4 + 4e-3))
    line = c.LINE_SHARE * LINES.link, LINES.link_latency
    assert c.all_reduce(1e9, 8, LINES) == pytest.approx(c.ring_all_reduce(1e9, 8, *line))
    network = c.LINE_SHARE * LINES.network, LINES.network_latency
    inside = 2 * c.ring_all_gather(1e9, 8, *line)
    between = min(c.ring_all_reduce(1e9 / 8, 4, *network), c.tree_all_reduce(1e9 / 8, 4, *network))
    assert c.all_reduce(1e9, 32, LINES) == pytest.approx(inside + between)


@pytest.mark.parametrize("passes", [1, 4])
def test_one_device_exchanges_nothing_and_is_as_planned(step, passes):
    for size in (0.0, 1e9):
        assert c.all_reduce(size, 1, LINES) == c.all_gather(size, 1, LINES) == 0
    planned = estimate(step[0], H100.hardware, passes=passes)
    for sharding in c.SHARDINGS:
        found = c.simulate(*step, H100, sharding=sharding, passes=passes)
        assert found.exchange == 0
        assert found.memory == planned.memory.total
        assert found.seconds == pytest.approx(planned.seconds, rel=1e-12)
        assert found.images_per_second == pytest.approx(planned.images_per_second, rel=1e-12)


@pytest.mark.parametrize("sharding", c.SHARDINGS)
@pytest.mark.parametrize("devices", [2, 8, 64, 1024])
def test_more_bandwidth_is_never_slower_and_exchange_never_free(step, sharding, devices):
    times = [
        c.simulate(
            *step,
            c.Cluster(
                H100.hardware,
                dataclasses.replace(LINES, link=s * LINES.link, network=s * LINES.network),
            ),
            devices=devices,
            sharding=sharding,
        ).seconds
        for s in (0.001, 0.1, 1, 10)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1] > c.simulate(*step, H100).compute * 0.5


def test_sharding_divides_the_state_and_is_chosen_where_it_has_to_be(step):
    counted, units = step
    state = counted.weights + counted.optimizer + counted.average
    whole, part = (c.memory(*step, devices=64, parts=parts) for parts in (1, 64))
    gathered = 2 * units.largest
    assert whole - part + gathered >= state * 63 / 64
    assert c.parts_of("sharded in the node", 64, 8) == 8
    assert c.recommended(*step, H100, devices=64).sharding == "replicated"
    large = dataclasses.replace(
        counted, weights=30 * GB, optimizer=60 * GB, average=30 * GB, gradients=30 * GB
    )
    assert c.recommended(large, units, H100, devices=8).sharding != "replicated"
    assert not c.recommended(large, units, H100, devices=1).fits
    huge = dataclasses.replace(large, optimizer=600 * GB)
    assert c.recommended(huge, units, H100, devices=64).sharding == "sharded"
