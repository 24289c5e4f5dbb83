"""Networks: any size, sight of the noise level, no mixing of examples, and the paper's letter."""

import math

import numpy as np
import pytest
import torch

from variational_diffusion.errors import InputError
from variational_diffusion.networks import MLP, NETWORKS, PaperUNet, Transformer, UNet
from variational_diffusion.networks.layers import (
    AttentionBlock,
    NoiseLevelEmbedding,
    fourier_features,
    group_norm,
    lattice_features,
)
from variational_diffusion.networks.transformer import TransformerBlock

SMALL = {
    "unet": {"widths": [8, 12], "attention": True, "conditioning_size": 1},
    "paper-unet": {"width": 8, "blocks": 2, "dropout": 0.0},
    "transformer": {"width": 12, "depth": 2, "channels": 8, "conditioning_size": 1},
    "mlp": {"width": 16, "blocks": 2, "conditioning_size": 1},
}


def perturbed(name, shape, **options):
    """A network as training may leave it: no parameter is zero."""
    torch.manual_seed(0)
    network = NETWORKS[name](shape, **SMALL[name], **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return network


def test_every_network_of_the_table_is_tested():
    assert SMALL.keys() == NETWORKS.keys()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (4, 1, 1), (2, 9, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_examples_do_not_mix_whatever_the_size(name, shape, generator):
    network = perturbed(name, shape)
    z = torch.randn(4, *shape, generator=generator)
    gamma = torch.tensor([-10.0, -4.0, 0.0, 4.0])
    together = network(z, gamma)
    assert together.shape == z.shape
    for i in range(4):
        alone = network(z[i : i + 1], gamma[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_depends_on_the_noise_level_and_on_the_conditioning(name, generator):
    """Groups of one channel would cancel the embedding, and the network would be blind to γ."""
    network = perturbed(name, (1, 8, 8))
    z = torch.randn(1, 1, 8, 8, generator=generator).expand(3, -1, -1, -1)
    out = network(z, torch.tensor([-10.0, -1.0, 4.0]))
    assert (out[0] - out[1]).abs().max() > 1e-3
    assert (out[1] - out[2]).abs().max() > 1e-3
    gamma = torch.zeros(3)
    out = network(z, gamma, torch.tensor([[0.0], [1.0], [-1.0]]))
    torch.testing.assert_close(out[:1], network(z[:1], gamma[:1]), rtol=1e-4, atol=1e-5)
    assert (out[0] - out[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_layers_between_run_in_a_lower_precision(name, generator):
    """z, its features and the output are finer than bfloat16 where γ is low."""
    network = perturbed(name, (1, 8, 8))
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, out: seen.append((layer, out.dtype)))
    z = torch.randn(2, 1, 8, 8, generator=generator)
    gamma = torch.tensor([-12.0, 1.0])
    exact = network(z, gamma)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(z, gamma)
    assert out.dtype == torch.float32
    dtypes = dict(seen)
    ends = [m for n, m in network.named_modules() if n.endswith(("_in", "_out")) and m in dtypes]
    assert len(ends) == 2
    for layer in [*ends, network.embedding.dense_0, network.embedding.dense_1]:
        assert dtypes.pop(layer) == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    torch.testing.assert_close(out, exact, rtol=0.1, atol=0.1 * exact.std().item())


@pytest.mark.parametrize(
    "name_and_start", [("unet", 0.0), ("transformer", 0.0), ("mlp", 0.0), ("paper-unet", 1.0)]
)
def test_fresh_networks_return_nothing_but_the_skip(name_and_start, generator):
    """The last layer is zero: v̂ = 0 to start with, or ε̂ = z for the paper's network."""
    name, start = name_and_start
    z = torch.randn(2, 3, 4, 4, generator=generator)
    network = NETWORKS[name]((3, 4, 4), **SMALL[name])
    assert torch.equal(network(z, torch.zeros(2)), start * z)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pixel_sees_every_other(name, generator):
    network = perturbed(name, (1, 12, 12))
    z = torch.randn(1, 1, 12, 12, generator=generator)
    moved = z.clone()
    moved[..., 0, 0] += 1.0
    change = network(moved, torch.zeros(1)) - network(z, torch.zeros(1))
    assert change[..., 11, 11].abs() > 1e-6


def test_a_transformer_block_is_its_formula(generator):
    """adaLN-Zero written out, with the soft-max over all pairs; the identity before training."""
    block = TransformerBlock(6, 2, 5).double()
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    embedding = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    assert torch.equal(block(x, embedding), x)
    torch.nn.init.normal_(block.modulate.weight, generator=generator)

    modulation = block.modulate(embedding).reshape(3, 6, 1, 6)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.unbind(1)

    def normalised(h):
        return (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, correction=0, keepdim=True) + 1e-6
        ).sqrt()

    q, k, v = block.query_key_value(normalised(x) * (1 + scale_1) + shift_1).split(6, dim=-1)
    heads = []
    for i in (slice(0, 3), slice(3, 6)):
        weights = (q[..., i] @ k[..., i].mT / math.sqrt(3)).softmax(-1)
        heads.append(weights @ v[..., i])
    h = x + gate_1 * block.project(torch.cat(heads, -1))
    inner = block.dense_1(normalised(h) * (1 + scale_2) + shift_2)
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(block(x, embedding), h + gate_2 * block.dense_2(inner))


def test_a_transformer_knows_where_a_patch_is_and_puts_it_back_there(generator):
    network = perturbed("transformer", (1, 12, 8))
    z = torch.randn(1, 1, 12, 8, generator=generator)
    network(z, torch.zeros(1)).square().sum().backward()
    assert (network.position.grad.abs().amax(1) > 0).all()

    seen = []
    network.after.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 8:]))
    with torch.no_grad():
        network(z, torch.zeros(1))
        bump = torch.nn.functional.one_hot(torch.tensor(3), 6)[:, None]  # second row, second column
        network.from_patches.register_forward_hook(lambda _module, _inputs, output: output + bump)
        network(z, torch.zeros(1))
    inside = torch.zeros(12, 8, dtype=torch.bool)
    inside[4:8, 4:8] = True
    changed = seen[0] != seen[1]
    assert (changed == inside).all()


def test_groups_hold_four_channels_or_more():
    for channels in (4, 8, 12, 16, 32, 64, 100, 128, 256):
        norm = group_norm(channels)
        assert channels % norm.num_groups == 0
        assert channels // norm.num_groups >= 4
        assert norm.eps == 1e-6
    assert group_norm(128).num_groups == group_norm(256).num_groups == 32


@pytest.mark.parametrize("name", ["unet", "transformer", "mlp"])
def test_the_lattice_is_an_input_for_discrete_data(name, generator):
    network = perturbed(name, (1, 4, 4), levels=17)
    z = torch.randn(2, 1, 4, 4, generator=generator)
    gamma = torch.tensor([-8.0, 0.0])
    assert network(z, gamma).shape == z.shape
    inputs = network.dense_in.in_features / 16 if name == "mlp" else network.conv_in.in_channels
    assert inputs == 4


def test_lattice_features_are_the_noise_where_it_is_fine(generator):
    gamma = torch.tensor([-16.0], dtype=torch.float64)
    x = (2 * torch.randint(0, 256, (1, 1, 50), generator=generator).double() + 1) / 256 - 1
    noise = torch.randn(1, 1, 50, dtype=torch.float64, generator=generator).clamp(-2, 2)
    z = torch.sigmoid(-gamma).sqrt() * x + torch.sigmoid(gamma).sqrt() * noise
    around = lattice_features(z, gamma, 256)[:, :1]
    torch.testing.assert_close(around, noise, rtol=1e-9, atol=1e-9)
    assert lattice_features(z + 5, gamma, 256)[:, 0].max() == 4


@pytest.mark.parametrize("gamma", [-13.0, -6.0, 3.0])
def test_lattice_features_are_the_noise_of_black_and_of_white_at_every_noise_level(
    gamma, generator
):
    gamma = torch.tensor([gamma], dtype=torch.float64)
    noise = torch.randn(1, 2, 50, dtype=torch.float64, generator=generator).clamp(-2, 2)
    squashed = 4 * torch.tanh(noise / 4)
    for x, kind, sign in ((-255 / 256, 1, 1), (255 / 256, 2, -1)):
        z = torch.sigmoid(-gamma).sqrt() * x + torch.sigmoid(gamma).sqrt() * noise
        found = lattice_features(z, gamma, 256)[:, 2 * kind : 2 * kind + 2]
        torch.testing.assert_close(found, sign * squashed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("gamma", [-13.3, -11.0, -8.0, 0.0])
def test_lattice_features_have_a_derivative_along_the_noise_level(gamma, kind, generator):
    """At fixed noise, for every entry: what the gradient of a schedule passes through.

    A distance from the nearest level fails here: where it jumps, differences are huge.
    """
    x = (2 * torch.randint(0, 256, (2000, 1), generator=generator).double() + 1) / 256 - 1
    noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)

    def features(gamma):
        z = torch.sigmoid(-gamma).sqrt()[:, None] * x + torch.sigmoid(gamma).sqrt()[:, None] * noise
        return lattice_features(z, gamma, 256)[:, kind]

    at, step = torch.full((2000,), gamma, dtype=torch.float64).requires_grad_(), 1e-3
    (slope,) = torch.autograd.grad(features(at).sum(), at)
    with torch.no_grad():
        difference = (features(at + step) - features(at - step)) / (2 * step)
    torch.testing.assert_close(difference, slope, rtol=0.01, atol=0.02)


def test_images_are_asked_for():
    for network in (UNet, PaperUNet, Transformer):
        with pytest.raises(InputError, match=r"shape = \(5,\).*network mlp"):
            network((5,))
    with pytest.raises(InputError, match=r"width = 2: .*4 channels or more"):
        PaperUNet((1, 8, 8), width=2)
    with pytest.raises(InputError, match=r"widths = \[6\]"):
        UNet((1, 8, 8), widths=[6])
    with pytest.raises(InputError, match=r"channels = 6, .*multiple of 4"):
        Transformer((1, 8, 8), channels=6)
    with pytest.raises(InputError, match=r"width = 10, heads = 3: .*the heads divide"):
        Transformer((1, 8, 8), width=10)
    assert MLP((5,))(torch.zeros(2, 5), torch.zeros(2)).shape == (2, 5)


def test_the_paper_network_has_the_published_size():
    with torch.device("meta"):
        network = PaperUNet((3, 32, 32))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(30.5e6, rel=0.003)
    assert len(network.down) == 32
    assert len(network.up) == 33
    assert all(block.norm_1.num_groups == 32 for block in [*network.down, *network.up])
    assert all(block.embed.bias is None for block in network.down)


def test_fourier_features_are_in_the_published_order():
    z = torch.tensor([[[0.3]], [[-0.7]]], dtype=torch.float64).reshape(1, 2, 1)
    angles = 2 * math.pi * np.array([64 * 0.3, 128 * 0.3, 64 * -0.7, 128 * -0.7])
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    got = fourier_features(z, (6, 7))
    np.testing.assert_allclose(got[0, :, 0].numpy(), expected, atol=1e-12)


def test_the_input_is_z_then_its_features(generator):
    network = PaperUNet((2, 3, 3), width=8, blocks=1)
    seen = []
    network.conv_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    z = torch.randn(1, 2, 3, 3, generator=generator)
    network(z, torch.zeros(1))
    torch.testing.assert_close(seen[0], torch.cat([z, fourier_features(z, (6, 7))], dim=1))


def test_the_embedding_is_the_published_one(generator):
    width = 16
    embedding = NoiseLevelEmbedding(width, -13.3, 5.0, 1).double()
    gamma = torch.tensor([-13.3, -2.0, 5.0], dtype=torch.float64)
    seen = []
    embedding.dense_0.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = embedding(gamma, None)
    u = (gamma.numpy() + 13.3) / 18.3
    half = width // 2
    angles = 1000 * u[:, None] * np.exp(-np.arange(half) * math.log(10_000) / (half - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-9)
    assert out.shape == (3, 4 * width)


def test_the_way_up_joins_the_last_skip_first(generator):
    """Each joined input is [h, skip]; the skips are those of the way down in reverse."""
    network = PaperUNet((1, 3, 3), width=8, blocks=2, dropout=0.0)
    down, joined = [], []
    network.conv_in.register_forward_hook(lambda module, inputs, output: down.append(output))
    for block in network.down:
        block.register_forward_hook(lambda module, inputs, output: down.append(output))
    for block in network.up:
        block.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    network(torch.randn(1, 1, 3, 3, generator=generator), torch.zeros(1))
    assert len(down) == len(joined) == 3
    for skip, block_input in zip(reversed(down), joined, strict=True):
        torch.testing.assert_close(block_input[:, 8:], skip)


def test_the_u_net_joins_the_output_of_the_same_resolution(generator):
    network = perturbed("unet", (1, 6, 5))
    down, joined = [], []
    for stage in network.down:
        stage.register_forward_hook(lambda module, inputs, output: down.append(output))
    for stage in network.up:
        stage.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    network(torch.randn(1, 1, 6, 5, generator=generator), torch.zeros(1))
    for skip, stage_input in zip(reversed(down), joined, strict=True):
        width = skip.shape[1]
        torch.testing.assert_close(stage_input[:, width:], skip)
        assert not torch.allclose(stage_input[:, :width], skip)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_the_soft_max_of_query_times_key_over_positions(heads, generator):
    block = AttentionBlock(8, heads=heads).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    x = torch.randn(1, 8, 2, 3, generator=generator).double()
    rows = block.query_key_value(block.norm(x))[0].flatten(1).detach().numpy()  # (24, positions)
    query, key, value = rows.reshape(3, heads, 8 // heads, 6)
    out = np.empty((heads, 8 // heads, 6))
    for head in range(heads):
        score = np.exp(query[head].T @ key[head] / math.sqrt(8 / heads))
        out[head] = value[head] @ (score / score.sum(1, keepdims=True)).T
    expected = x + block.project(torch.from_numpy(out.reshape(1, 8, 2, 3)))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
