"""Training: it learns, it repeats, it goes on, and it does what its configuration says."""

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import pytest
import torch

from variational_diffusion.config import Component, ModelConfig, TrainingConfig, validated
from variational_diffusion.decoders import Discretized, Gaussian
from variational_diffusion.errors import DivergedError, InputError
from variational_diffusion.machine.distributed import ALONE
from variational_diffusion.model import VDM, build
from variational_diffusion.numerics import bits_per_dim, derived_seed
from variational_diffusion.schedules import FixedLinear
from variational_diffusion.training import (
    Engine,
    TrainingState,
    fit,
    make_optimizers,
    steps,
)
from variational_diffusion.training.ema import ExponentialAverage
from variational_diffusion.training.steps import learning_rate_factor

LEVELS = 17


def a_model(seed: int = 0, dropout: float = 0.0) -> VDM:
    schedule = {"gamma_min": -7.9, "gamma_max": 5.0, "hidden": 16}
    network = {"gamma_min": -7.9, "levels": LEVELS, "width": 64, "dropout": dropout}
    config = ModelConfig(
        shape=(1, 4, 4),
        decoder=Component(name="discretized", options={"levels": LEVELS}),
        schedule=Component(name="monotone", options=schedule),
        network=Component(name="mlp", options=network),
    )
    return build(config, seed=seed)


def data(count: int = 8) -> torch.Tensor:
    return torch.randint(0, LEVELS, (count, 1, 4, 4), generator=torch.Generator().manual_seed(1))


def stream(start: int = 0):
    while True:
        yield data(64).roll(start, 0)[:8]
        start += 1


def train(config: TrainingConfig, state: TrainingState | None = None, stop: int | None = None):
    state = state or TrainingState.start(a_model(config.seed, dropout=0.1), config)
    for record in fit(state, stream(state.step), config):
        if record.step == stop:
            break
    return state


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    average = state.average.module.state_dict()
    return state.vdm.state_dict() | {f"average.{name}": value for name, value in average.items()}


def same(a: TrainingState, b: TrainingState) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_small_model_overfits_eight_images():
    """Uniform data cost log2(17) = 4.09 bits; eight known images cost 3/16 and the rest."""
    config = TrainingConfig(steps=1500, learning_rate=3e-3, warmup_steps=20, batch_size=32)
    state = TrainingState.start(a_model(), config)
    x = data().repeat(4, 1, 1, 1)
    totals = [
        float(bits_per_dim(record.bound.total, 16).mean())
        for record in fit(state, iter(lambda: x, None), config)
    ]
    assert sum(totals[:20]) / 20 > 3.0
    assert sum(totals[-100:]) / 100 < 0.9


def test_one_seed_gives_one_set_of_weights_and_another_another():
    configs = [TrainingConfig(steps=6, warmup_steps=2, seed=seed) for seed in (3, 3, 4)]
    first, second, other = map(train, configs)
    assert same(first, second)
    assert not same(first, other)


def test_a_loop_left_and_entered_again_ends_like_one_that_was_not():
    config = TrainingConfig(steps=8, warmup_steps=2, decay_from=0.5)
    whole = train(config)
    parts = train(config, stop=3)
    assert parts.step == 3
    assert not same(whole, parts)
    train(config, parts)
    assert parts.step == 8
    assert same(whole, parts)


def test_every_step_draws_its_own_times_and_noise():
    config = TrainingConfig(steps=3, learning_rate=1e-12, schedule_learning_rate=0.0)
    state = TrainingState.start(a_model(), config)
    x = data()
    bounds = [record.bound for record in fit(state, iter(lambda: x, None), config)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(bounds[a].diffusion, bounds[b].diffusion)
        assert not torch.equal(bounds[a].reconstruction, bounds[b].reconstruction)


def test_the_seed_decides_the_noise_of_equal_models():
    first, other = (
        train(config, TrainingState.start(a_model(), config))
        for config in (TrainingConfig(steps=2, seed=seed) for seed in (3, 4))
    )
    assert not same(first, other)


def test_a_step_uses_its_own_gradient_with_dropout_and_enters_the_average():
    config = TrainingConfig(steps=4, warmup_steps=0)
    state = TrainingState.start(a_model(dropout=0.1), config)
    seen = []

    def see(module, _):
        if torch.is_grad_enabled():  # and not a measurement for the schedule's end points
            seen.append(module.training)

    state.vdm.network.register_forward_pre_hook(see)
    expected = None
    state.vdm.eval()
    for n, _ in enumerate(fit(state, stream(), config)):
        state.vdm.eval()  # as a caller who validates leaves it
        assert all(p.grad is None or not p.grad.any() for p in state.vdm.parameters())
        weight = state.vdm.network.dense_in.weight.detach().clone()
        decay = (1 + n) / (10 + n)
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert seen == [True] * 4
    torch.testing.assert_close(state.average.module.network.dense_in.weight.detach(), expected)
    assert not torch.equal(expected, weight)


def test_dropout_does_not_share_the_stream_of_times_and_noise():
    drawn = []

    class Drawing(torch.nn.Module):
        """Draws from the global generator, as dropout does."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z, gamma, conditioning=None):
            drawn.append((gamma.detach().clone(), torch.rand(1)))
            return self.scale * z

    vdm = VDM(
        Drawing(), FixedLinear(0.0, 1.0), Gaussian(), (2,)
    )  # γ = t, and t_0 is the first draw
    config = TrainingConfig(steps=5)
    for _ in fit(TrainingState.start(vdm, config), iter(lambda: torch.zeros(3, 2), None), config):
        pass
    times, from_global = (torch.stack(values) for values in zip(*drawn, strict=True))
    assert (times[:, :1] - from_global).abs().min() > 1e-4


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "minutes": 1.0}])
def test_a_budget_is_steps_or_minutes_and_never_both_or_none(budget):
    with pytest.raises(InputError, match="give one of them as the budget"):
        validated(TrainingConfig, budget)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    train(TrainingConfig(steps=2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    config = TrainingConfig(steps=100, warmup_steps=9, decay_from=0.5)
    factors = [learning_rate_factor(step, step / 100, config) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:51] == [1.0] * 41
    assert factors[51:] == pytest.approx([2 - step / 50 for step in range(51, 101)])
    state = TrainingState.start(a_model(), config)
    records = list(islice(fit(state, stream(), config), 3))
    assert [r.learning_rate for r in records] == pytest.approx([4e-4, 8e-4, 12e-4])
    groups = [group for each in state.optimizers.values() for group in each.param_groups]
    for rate in ("learning", "matrix_learning", "schedule_learning", "end_point_learning"):
        scaled = pytest.approx(0.3 * getattr(config, f"{rate}_rate"))
        assert any(group["lr"] == scaled for group in groups), rate


def test_a_budget_of_minutes_is_spent_in_seconds_of_training():
    state = train(TrainingConfig(minutes=0.02))
    assert 1.2 <= state.seconds < 1.2 + 1.0
    assert state.step > 10


def test_time_spent_by_the_caller_is_not_training(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    config = TrainingConfig(steps=3)
    state = TrainingState.start(a_model(), config)
    for _ in fit(state, stream(), config):
        clock[0] += 100.0
    assert state.seconds == 0.0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer_and_only_matrices_are_decayed(optimizer):
    vdm = a_model()
    config = TrainingConfig(steps=1, weight_decay=0.3, optimizer=optimizer)
    optimizers = make_optimizers(vdm, config)
    groups = [group for each in optimizers.values() for group in each.param_groups]
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in vdm.network.parameters() if p.ndim > 1}
    every = [p for group in groups for p in group["params"]]
    assert len(every) == len({id(p) for p in every})
    assert {id(p) for p in every} == {id(p) for p in vdm.parameters() if p.requires_grad}


def test_muon_takes_the_matrices_that_are_not_thin():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 7, 3)
    )
    vdm = VDM(network, FixedLinear(-5.0, 5.0), Discretized(17), (1, 8, 8))
    optimizers = make_optimizers(vdm, TrainingConfig(steps=1))
    taken = [p for group in optimizers["muon"].param_groups for p in group["params"]]
    assert [id(p) for p in taken] == [id(network[0].weight), id(network[1].weight)]
    assert "muon" not in make_optimizers(vdm, TrainingConfig(steps=1, optimizer="adamw"))


def test_gradients_of_the_network_are_clipped_to_the_norm_and_the_schedules_are_not():
    moved, schedules = [], []
    for clip in (None, 1e-9):
        config = TrainingConfig(
            steps=1, warmup_steps=0, clip_norm=clip, weight_decay=0.0, optimizer="adamw"
        )
        state = TrainingState.start(a_model(), config)
        before = state.vdm.network.dense_out.weight.detach().clone()
        (record,) = fit(state, stream(), config)
        assert record.gradient_norm > 1e-3
        after = state.vdm.network.dense_out.weight.detach()
        moved.append(float((after - before).abs().max()))
        schedules.append(state.vdm.schedule.bias_2.detach().clone())
    assert torch.equal(*schedules)
    # Adam's first step is ±rate whatever the scale, unless the gradient is below its eps of 1e-8
    assert moved[1] < 0.2 * moved[0]


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    average = ExponentialAverage(model, decay=0.5)
    expected = None
    for n, value in enumerate([1.0, 3.0, -2.0, 5.0, 0.5, 4.0, 7.0, -1.0, 2.0, 6.0, 9.0]):
        torch.nn.init.constant_(model.weight, value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert float(average.module.weight.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_average_has_the_decay_of_the_configuration():
    """At update n the lesser of that and (1 + n)/(10 + n): half from the eighth on."""
    config = TrainingConfig(steps=12, ema_decay=0.5, learning_rate=1e-3)
    state = train(config, stop=11)
    before, weight = (
        vdm.network.dense_in.weight.detach().clone() for vdm in (state.average.module, state.vdm)
    )
    train(config, state)
    after = state.average.module.network.dense_in.weight
    new = state.vdm.network.dense_in.weight
    assert not torch.equal(new, weight)
    torch.testing.assert_close(after, 0.5 * before + 0.5 * new.detach())


def test_the_average_has_the_buffers_of_the_model_and_no_gradients():
    model = torch.nn.BatchNorm1d(2)
    average = ExponentialAverage(model, decay=0.5)
    model(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    assert not torch.equal(average.module.running_mean, model.running_mean)
    average.update()
    assert torch.equal(average.module.running_mean, model.running_mean)
    assert average.module.num_batches_tracked == 1
    assert not any(p.requires_grad for p in average.module.parameters())


def test_seeds_of_steps_differ_and_depend_on_both():
    seeds = {derived_seed(seed, step) for seed in range(20) for step in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert math.log2(max(seeds)) > 60


def finite(state: TrainingState) -> bool:
    return all(bool(w.isfinite().all()) for w in weights(state).values() if w.is_floating_point())


def break_down(state: TrainingState, broken: str, when: Callable[[], bool]) -> None:
    """Let the network's output or the schedule's gradient be no number when asked so."""
    if broken == "network":
        state.vdm.network.register_forward_hook(
            lambda _, __, output: output * math.nan if when() else output
        )
    else:
        state.vdm.schedule.bias_2.register_hook(lambda g: g * math.inf if when() else g)


@pytest.mark.parametrize("broken", ["network", "schedule"])
def test_a_step_that_is_not_finite_leaves_the_weights_and_is_counted(broken):
    config = TrainingConfig(steps=6, learning_rate=1e-3)
    state = TrainingState.start(a_model(), config)
    break_down(state, broken, lambda: state.step == 3)
    seen = []
    for record in fit(state, stream(), config):
        seen.append({key: value.clone() for key, value in weights(state).items()})
        assert record.skipped == (record.step == 4)
    assert (state.step, state.skipped) == (6, 1)
    assert finite(state)
    same_ones = [torch.equal(seen[3][key], seen[2][key]) for key in seen[2] if learned(key)]
    assert all(same_ones)
    assert not any(torch.equal(seen[4][key], seen[3][key]) for key in ("network.dense_in.weight",))


def learned(key: str) -> bool:
    """Whether this is a weight of the model, and no note that the schedule takes of the loss."""
    notes = ("end_errors", "mean_loss", "_extra_state")
    return not key.endswith(notes) and not key.startswith("average.")


@pytest.mark.parametrize(
    ("broken", "name"), [("network", "bound"), ("schedule", "schedule's gradient")]
)
def test_ten_steps_in_a_row_that_are_not_finite_end_with_a_diagnosis(broken, name):
    config = TrainingConfig(steps=30, learning_rate=1e-3)
    state = train(config, stop=3)
    before = {key: value.clone() for key, value in weights(state).items()}
    break_down(state, broken, lambda: True)
    with pytest.raises(
        DivergedError, match=rf"diverged in step 13.* \(the {name} is (nan|inf)\).*0.001"
    ):
        train(config, state)
    assert state.skipped == 10
    assert finite(state)
    assert all(torch.equal(v, before[k]) for k, v in weights(state).items() if learned(k))


def test_steps_that_are_not_finite_but_not_in_a_row_do_not_end_it():
    config = TrainingConfig(steps=24, learning_rate=1e-3)
    state = TrainingState.start(a_model(), config)
    break_down(state, "network", lambda: state.step % 2 == 1)
    train(config, state)
    assert (state.step, state.skipped) == (24, 12)


def test_rates_that_were_lowered_are_lower():
    config = TrainingConfig(steps=3, warmup_steps=0)
    state = TrainingState.start(a_model(), config)
    state.rate = 0.25
    (first, *_) = fit(state, stream(), config)
    assert first.learning_rate == pytest.approx(0.25 * config.learning_rate)


def test_a_batch_in_parts_gives_the_step_of_the_whole():
    """The network sees the same noise."""
    ends = []
    for parts in (1, 4):
        config = TrainingConfig(steps=1, schedule_learning_rate=0.0, end_point_learning_rate=0.0)
        state = TrainingState.start(a_model(), config)
        (record,) = fit(state, stream(), config, engine=Engine(parts=parts))
        ends.append((record, state))
    (whole, first), (in_parts, second) = ends
    torch.testing.assert_close(in_parts.bound.total, whole.bound.total)
    assert in_parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    for name, weight in first.vdm.network.state_dict().items():
        torch.testing.assert_close(second.vdm.network.state_dict()[name], weight, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs take a GPU")
def test_recorded_steps_are_those_of_eager_ones():
    """Over 70 steps, so that both kinds of step are recorded: with and without the ends."""
    totals = []
    for graphs in (False, True):
        config = TrainingConfig(steps=140, warmup_steps=0, learning_rate=1e-3)
        state = TrainingState.start(a_model(dropout=0.1).cuda(), config)
        records = fit(state, stream(), config, engine=Engine(graphs=graphs))
        totals.append(torch.stack([record.bound.total.mean() for record in records]))
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_graphs_are_refused_where_they_would_leave_levels_out(width):
    """The least noise may be as wide as a level, and no wider."""
    state = TrainingState.start(a_model(), TrainingConfig(steps=1))
    step = steps._Step(state, TrainingConfig(steps=1), Engine(), ALONE)
    gamma_0 = 2 * math.log(2 / LEVELS * width)
    state.vdm.schedule.initial_end_points.copy_(torch.tensor([gamma_0, 5.0]))
    if width <= 1:
        step._check_recorded_sums()
        return
    with pytest.raises(InputError, match=r"has become 2.0 levels wide.*--compile default"):
        step._check_recorded_sums()


def test_a_stop_that_is_asked_for_comes_after_the_step():
    config = TrainingConfig(steps=9)
    state = TrainingState.start(a_model(), config)
    records = list(fit(state, stream(), config, stopped=lambda: state.step == 4))
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert state.step == 5


@pytest.mark.parametrize(
    "rates",
    [
        {"schedule_learning_rate": 1.0},
        {"end_point_learning_rate": 0.3},
        {"learning_rate": 0.2, "schedule_learning_rate": 1.0, "end_point_learning_rate": 0.3},
    ],
)
def test_rates_a_hundred_times_too_large_end_finite_or_with_a_message(rates):
    config = TrainingConfig(steps=200, warmup_steps=0, **rates)
    state = TrainingState.start(a_model(), config)
    with suppress(DivergedError):
        train(config, state)
    assert finite(state)
    t = torch.linspace(0, 1, 101)
    assert (state.vdm.schedule(t).diff() > 0).all()


def test_the_schedule_has_rates_of_its_own_and_enters_the_average():
    config = TrainingConfig(steps=1, warmup_steps=0, schedule_learning_rate=0.5, decay_from=1.0)
    state = TrainingState.start(a_model(), config)
    before = {name: p.detach().clone() for name, p in state.vdm.schedule.named_parameters()}
    train(config, state)
    for name, p in state.vdm.schedule.named_parameters():
        # Adam's first step is the rate, whatever the gradient
        rate = config.end_point_learning_rate if name == "log_stretch" else 0.5
        moved = (p.detach() - before[name]).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=1e-2), name
        average = state.average.module.schedule.get_parameter(name).detach()
        torch.testing.assert_close(average, p.detach())


def test_end_points_do_not_cost_more_than_their_price():
    """With nothing to gain, the price alone moves them: together, at the rate."""
    config = TrainingConfig(
        steps=20, warmup_steps=0, decay_from=1.0, range_price=1e6, end_point_learning_rate=1e-2
    )
    state = train(config)
    moved = state.vdm.schedule.log_stretch.detach()
    torch.testing.assert_close(moved, torch.full((2,), -0.2), rtol=0.05, atol=0.0)
