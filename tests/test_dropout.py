"""Dropout: a mask for every example that is a function of its keys and of nothing else."""

import math

import pytest
import torch
from torch import nn

from variational_diffusion.errors import InputError
from variational_diffusion.networks import NETWORKS, Dropout
from variational_diffusion.networks.dropout import draw_keys, dropout_layers, keyed
from variational_diffusion.training.sharding import recompute_activations


def masks(p, rows, entries, generator, layers=1):
    """Return which entries are kept, (layers, rows, entries)."""
    stack = [Dropout(p) for _ in range(layers)]
    x = torch.ones(rows, entries)
    with keyed(stack, draw_keys(layers, rows, generator)):
        outputs = torch.stack([layer(x) for layer in stack])
    kept = outputs > 0
    torch.testing.assert_close(outputs, kept / (1 - p))
    return kept


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_the_share_is_p(p, generator):
    kept = masks(p, 2000, 200, generator)[0].double()
    # entries of a row share their keys, and a row of 200 is one draw; pairs are independent, so the
    # mean of all has the variance of independent ones. Two-sided at 5: false alarm 6e-7
    assert abs(float(kept.mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.numel())
    # of each entry over the rows, at 5.5: false alarm 4e-8 for each of 200
    assert (kept.mean(0) - (1 - p)).abs().max() < 5.5 * math.sqrt(p * (1 - p) / len(kept))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_entries_rows_and_layers_are_independent(p, generator):
    kept = masks(p, 4096, 64, generator, layers=2).double()
    standard = (kept - (1 - p)) / math.sqrt(p * (1 - p))
    first, second = standard
    count = math.sqrt(len(first))
    pairs = (first.T @ first / count).fill_diagonal_(0)
    triples = (first[:, :-2] * first[:, 1:-1] * first[:, 2:]).sum(0) / count
    across = first.T @ second / count
    rows = masks(p, 64, 4096, generator)[0].double()
    standard = (rows - (1 - p)) / math.sqrt(p * (1 - p))
    between = (standard @ standard.T / count).fill_diagonal_(0)
    for found in (pairs, triples, across, between):
        # N(0, 1) each, 4,096 at most: two-sided at 6, false alarm 8e-6 in all (skew included for
        # p = 0.1, where a sum of 4,096 is within 1 % of normal)
        assert found.abs().max() < 6


def test_a_row_has_its_mask_in_any_batch_and_layout(generator):
    layer = Dropout(0.3)
    keys = draw_keys(1, 6, generator)
    x = torch.randn(6, 3, 4, 5, generator=generator)
    with keyed([layer], keys):
        whole = layer(x)
        again = layer(x.to(memory_format=torch.channels_last))
        flat = layer(x.flatten(1))
    assert again.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(again.contiguous(), whole, rtol=0, atol=0)
    torch.testing.assert_close(flat.view_as(x), whole, rtol=0, atol=0)
    with keyed([layer], keys[..., 2:4]):
        torch.testing.assert_close(layer(x[2:4]), whole[2:4], rtol=0, atol=0)
    assert not torch.equal(whole[0] == 0, whole[1] == 0)


def test_what_is_dropped_has_no_gradient_and_the_rest_its_scale(generator):
    layer, x = Dropout(0.3), torch.randn(5, 40, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)
    assert set((x.grad * 0.7).round(decimals=6).unique().tolist()) == {0.0, 1.0}


def test_without_keys_it_draws_from_the_global_generator():
    layer, x = Dropout(0.5), torch.ones(4, 100)
    with torch.random.fork_rng():
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found += [layer(x), layer(x)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[4])


def test_evaluation_and_zero_change_nothing_and_mistakes_are_named():
    x = torch.ones(4, 100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    for p in (-0.1, 1.0, 1.5):
        with pytest.raises(InputError, match=rf"dropout = {p}: give a probability"):
            Dropout(p)
    assert dropout_layers(nn.Sequential(Dropout(0.0), Dropout(0.2)))[0].p == 0.2
    assert len(dropout_layers(nn.Sequential(Dropout(0.0), Dropout(0.2), nn.Dropout(0.2)))) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_its_masks_from_keys(name, generator):
    """Equal keys, equal gradients, whatever the global generator does, and with recomputation."""
    options = {"mlp": {"width": 16}, "unet": {"widths": [8, 8]}, "paper-unet": {"width": 8}}
    options["paper-unet"]["blocks"] = 1
    options["transformer"] = {"width": 24, "depth": 2, "channels": 8}
    network = NETWORKS[name]((1, 8, 8), dropout=0.3, **options[name])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    layers = dropout_layers(network)
    assert len(layers) > 1
    keys = draw_keys(len(layers), 3, generator)
    z, gamma = torch.randn(3, 1, 8, 8, generator=generator), torch.zeros(3)

    def gradients(keys):
        network.zero_grad()
        with keyed(layers, keys):
            network(z, gamma).square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    first, other = gradients(keys), gradients(keys.roll(1, 2))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    recompute_activations(network)
    torch.testing.assert_close(gradients(keys), first)
