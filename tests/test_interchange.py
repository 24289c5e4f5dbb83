"""ONNX against torch, the official release against its own code, and both bridges to diffusers."""

import json
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest
import torch

from variational_diffusion.cli import run
from variational_diffusion.config import Component, ModelConfig
from variational_diffusion.decoders import Discretized
from variational_diffusion.errors import InputError
from variational_diffusion.grids import uniform_in_time
from variational_diffusion.interchange.official import read_official
from variational_diffusion.model import VDM, build
from variational_diffusion.networks import NETWORKS
from variational_diffusion.run.directory import Run
from variational_diffusion.schedules import FixedLinear

SMALL = {
    "unet": {"widths": [4], "levels": 17},
    "paper-unet": {"width": 4, "blocks": 1, "groups": 1, "dropout": 0.1},
    "transformer": {"width": 4, "depth": 1, "channels": 4, "heads": 1, "patch": 2},
    "mlp": {"width": 8, "blocks": 1},
}


def trained(
    network="unet",
    schedule="adaptive",
    levels=17,
    shape=(1, 5, 4),
    options=None,
    condition=None,
):
    """A model as training may leave it: no parameter is zero."""
    vdm = build(
        ModelConfig(
            shape=shape,
            decoder=Component(name="discretized", options={"levels": levels}),
            schedule=Component(name=schedule),
            network=Component(name=network, options=options or SMALL[network]),
            condition=condition,
        )
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in vdm.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return vdm.eval().requires_grad_(False)


# ONNX

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_denoiser_is_the_same_in_onnxruntime(network, tmp_path, generator):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from variational_diffusion.interchange.onnx import export_denoiser  # noqa: PLC0415

    vdm = trained(network)
    assert export_denoiser(vdm, tmp_path / "model.onnx") < 1e-4
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3, 8):  # made from a batch of two
        z = torch.randn(batch, 1, 5, 4, generator=generator)
        gamma = torch.linspace(-13.3, 4.0, batch)
        theirs = session.run(["noise", "x"], {"z": z.numpy(), "gamma": gamma.numpy()})
        for a, b in zip(theirs, vdm.denoise(z, gamma), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, **CLOSE)
    metadata = session.get_modelmeta().custom_metadata_map
    assert float(metadata["gamma_0"]) == vdm.schedule.gamma_0.item()
    assert float(metadata["gamma_1"]) == vdm.schedule.gamma_1.item()
    assert json.loads(metadata["shape"]) == [1, 5, 4]
    assert json.loads(metadata["decoder"])["options"] == {"levels": 17}


def test_the_condition_goes_into_the_graph(tmp_path, generator):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from variational_diffusion.interchange.onnx import export_denoiser  # noqa: PLC0415

    labels = {"names": ["bag", "coat", "shirt"], "shares": [0.25, 0.25, 0.5]}
    condition = Component(name="label", options=labels)
    vdm = trained(options=SMALL["unet"] | {"conditioning_size": 3}, condition=condition)
    export_denoiser(vdm, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    z, gamma = torch.randn(3, 1, 5, 4, generator=generator), torch.linspace(-9.0, 4.0, 3)
    given = torch.tensor([2, 0, 1])
    results = []
    for rows in (vdm.condition.encode(given), torch.zeros(3, 3)):
        inputs = {"z": z.numpy(), "gamma": gamma.numpy(), "conditioning": rows.numpy()}
        results.append(torch.from_numpy(session.run(["x"], inputs)[0]))
    torch.testing.assert_close(results[0], vdm.given(given).denoise(z, gamma).x, **CLOSE)
    torch.testing.assert_close(results[1], vdm.denoise(z, gamma).x, **CLOSE)
    assert (results[0] - results[1]).abs().max() > 1e-3
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["condition"])["options"]["names"] == labels["names"]


def test_an_onnx_file_is_not_overwritten(tmp_path):
    from variational_diffusion.interchange.onnx import export_denoiser  # noqa: PLC0415

    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(InputError, match="exists and is not overwritten"):
        export_denoiser(trained("mlp"), tmp_path / "there.onnx")
    with pytest.raises(InputError, match=r"give the name of a new \.onnx file"):
        export_denoiser(trained("mlp"), tmp_path / "model.pt")
    assert (tmp_path / "there.onnx").read_text() == "mine"


# The official release

WIDTH, CHANNELS, SIZE = 32, 3, (6, 5)

NOISE = [0.76276, -1.54644, -0.17847, 2.94605, -0.03801, 0.46051, -1.08059, -0.85745, 0.57796]
"""Every twentieth entry of ε̂, by the release's `ScoreUNet` in flax, for the parameters below, at
z = `numbers("z", (2, 6, 5, 3), 1.5)` (channels last) and γ = −11 and 2.5."""

GAMMAS = {
    "fixed": [-13.3, -9.64, -5.98, -2.32, 1.34, 5.0],
    "learnable_scalar": [-13.7486, -10.15174, -6.55487, -2.95801, 0.63885, 4.23572],
    "learnable_nnet": [-15.15867, -11.45378, -7.13373, -3.03882, 1.42569, 5.19402],
}
"""γ(t) at t = 0, 0.2, … 1 by the release's noise schedules, for the parameters below."""


def numbers(name, shape, scale):
    """Numbers of either sign, the same on every machine and others for every name."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64) + zlib.crc32(name.encode()) % 9973
    return (scale * np.sin(1.7 * i + 0.01 * i**2 % 6.28)).reshape(shape).astype(np.float32)


def parameters(schedule, salt=""):
    """The parameters of the release's model of one block, with its names and its shapes."""

    def dense(n_in, n_out, bias=True):
        return {"kernel": (n_in, n_out)} | ({"bias": (n_out,)} if bias else {})

    def conv(n_in, n_out):
        return {"kernel": (3, 3, n_in, n_out), "bias": (n_out,)}

    def norm(n):
        return {"scale": (n,), "bias": (n,)}

    def block(n_in):
        layers = {
            "GroupNorm_0": norm(n_in),
            "conv1": conv(n_in, WIDTH),
            "cond_proj": dense(4 * WIDTH, WIDTH, bias=False),
            "GroupNorm_1": norm(WIDTH),
            "conv2": conv(WIDTH, WIDTH),
        }
        return layers | ({"nin_shortcut": dense(n_in, WIDTH)} if n_in != WIDTH else {})

    network = {
        "dense0": dense(WIDTH + 1, 4 * WIDTH),
        "dense1": dense(4 * WIDTH, 4 * WIDTH),
        "conv_in": conv(5 * CHANNELS, WIDTH),
        "down.block_0": block(WIDTH),
        "mid.block_1": block(WIDTH),
        "mid.block_2": block(WIDTH),
        "mid.attn_1": {"GroupNorm_0": norm(WIDTH)}
        | {name: dense(WIDTH, WIDTH) for name in ("q", "k", "v", "proj_out")},
        "up.block_0": block(2 * WIDTH),
        "up.block_1": block(2 * WIDTH),
        "GroupNorm_0": norm(WIDTH),
        "conv_out": conv(WIDTH, CHANNELS),
    }
    gamma = {
        "fixed": {},
        "learnable_scalar": {"w": (1,), "b": (1,)},
        "learnable_nnet": {
            "l1": dense(1, 1),
            "l2": dense(1, 1024),
            "l3": dense(1024, 1, bias=False),
        },
    }[schedule]
    ranges = {
        "/gamma/w": (-18.3, 0.5),
        "/gamma/b": (-13.3, 0.5),
        "/gamma/l1/kernel": (-16.0, 0.5),
        "/gamma/l1/bias": (-13.3, 0.5),
        "/gamma/l2/kernel": (0.0, 20.0),
        "/gamma/l2/bias": (0.0, 10.0),
        "/gamma/l3/kernel": (0.0, 4.0),
    }

    def filled(shapes, path=""):
        return {
            name: filled(value, f"{path}/{name}")
            if isinstance(value, dict)
            else array(f"{path}/{name}", value)
            for name, value in shapes.items()
        }

    def array(path, shape):
        middle, scale = ranges.get(path, (1.0 if path.endswith("scale") else 0.0, 0.15))
        return np.float32(middle) + numbers(salt + path, shape, scale)

    return filled({"score_model": network} | ({"gamma": gamma} if gamma else {}))


def packed(tree):
    """A tree as flax.serialization writes it."""

    def encode(value):
        content = msgpack.packb((value.shape, value.dtype.name, value.tobytes()))
        return msgpack.ExtType(1, content)

    return msgpack.packb(tree, default=encode, strict_types=True)


def checkpoint(folder, schedule="learnable_scalar", change=lambda state: None, step=1234):
    state = {
        "step": np.asarray(step, np.int32),
        "params": parameters(schedule, "raw"),
        "ema_params": parameters(schedule),
        "opt_state": {"0": {"count": np.asarray(step, np.int32)}, "1": {}},
    }
    change(state)
    path = folder / "checkpoints-0.flax"
    path.write_bytes(packed(state))
    return path


@pytest.mark.parametrize("schedule", GAMMAS)
def test_an_official_checkpoint_gives_the_numbers_of_its_own_code(schedule, tmp_path):
    found = read_official(checkpoint(tmp_path, schedule), SIZE)
    assert found.step == 1234
    z = torch.from_numpy(numbers("z", (2, *SIZE, CHANNELS), 1.5)).permute(0, 3, 1, 2)
    noise = found.average.denoise(z, torch.tensor([-11.0, 2.5])).noise
    every = noise.permute(0, 2, 3, 1).reshape(-1)[::20]
    torch.testing.assert_close(every, torch.tensor(NOISE), rtol=0, atol=5e-5)
    gammas = found.average.schedule(torch.linspace(0, 1, 6))
    torch.testing.assert_close(gammas, torch.tensor(GAMMAS[schedule]), rtol=0, atol=2e-5)
    raw = found.raw.denoise(z, torch.tensor([-11.0, 2.5])).noise
    assert (raw - noise).abs().max() > 0.1


@pytest.mark.parametrize("slope", [18.3, 5.0])
def test_a_monotone_schedule_takes_any_shape_with_a_straight_part(slope, generator):
    """γ(t) between the end points is g(t), in float64 to its last digits."""
    vdm = trained("mlp", "monotone").double()
    slope, weight = torch.tensor(slope).double(), torch.rand(1024, generator=generator).double()
    steepness, offset = 40 * torch.rand(2, 1024, generator=generator).double() - 1e-3
    vdm.schedule.set_shape(slope, steepness.clamp(min=0), offset - 20, weight)
    t = torch.linspace(0, 1, 50).double()
    hidden = torch.sigmoid(steepness.clamp(min=0) * t[:, None] + offset - 20)
    g = slope * t + (weight * hidden).sum(1)
    u, rate = vdm.schedule.shape_and_rate(t)
    torch.testing.assert_close(u, (g - g[0]) / (g[-1] - g[0]), rtol=1e-12, atol=1e-14)
    assert (rate > 0).all()
    with pytest.raises(InputError, match="has to be above"):
        vdm.schedule.set_shape(torch.tensor(0.1).double(), steepness, offset, weight)


def test_a_run_is_made_of_an_official_checkpoint(tmp_path, capsys):
    pictures = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "data.npy", pictures.transpose(0, 3, 1, 2))
    words = ["import-official", str(checkpoint(tmp_path)), "--run", str(tmp_path / "run")]
    words += ["--data", str(tmp_path / "data.npy"), "--size", "6x5"]
    assert run(words) == 0
    assert "after step 1,234" in capsys.readouterr().out
    opened = Run.open(tmp_path / "run")
    official = read_official(tmp_path / "checkpoints-0.flax", SIZE)
    for weights, vdm in (("ema", official.average), ("raw", official.raw)):
        loaded = opened.load(weights).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in vdm.state_dict().items())
    assert opened.resume().state.step == 1234
    assert run(["evaluate", str(tmp_path / "run"), "--limit", "2", "--threads", "1"]) == 0
    assert run(words) == 2
    assert "exists and is no empty folder" in capsys.readouterr().err


def without(*path):
    def change(state):
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


def put(value, *path):
    def change(state):
        for name in path[:-1]:
            state = state.setdefault(name, {})
        state[path[-1]] = value

    return change


NETWORK = ("ema_params", "score_model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("ema_params"), "holds step, params, opt_state: a checkpoint of the official"),
        (without(*NETWORK, "mid.attn_1", "k", "bias"), "score_model/mid.attn_1/k/bias is missing"),
        (without(*NETWORK, "conv_out"), "score_model/conv_out/bias is missing"),
        (put({}, *NETWORK, "down.attn_0", "q", "kernel"), None),
        (put(np.zeros((32, 32), "f4"), *NETWORK, "down.attn_0", "q", "kernel"), "has no place"),
        (put(np.zeros(31, "f4"), *NETWORK, "dense0", "bias"), "dense0/bias has the shape"),
        (put(np.zeros((), "f4"), *NETWORK, "dense0", "bias"), "dense0/bias has the shape"),
        (put(np.zeros((32, 2), "f4"), *NETWORK, "mid.attn_1", "q", "kernel"), "has the shape"),
        (put(np.full(32, np.nan, "f4"), *NETWORK, "conv_in", "bias"), "are not finite"),
        (put(np.zeros(32, "c8"), *NETWORK, "conv_in", "bias"), "has type 'complex64'"),
        (put(3, *NETWORK, "conv_in", "bias"), "conv_in/bias is no array"),
        (put(np.zeros(2, "f4"), "ema_params", "gamma", "w"), "gamma has parameters"),
        (put(np.zeros(2, "f4"), "ema_params", "encdec", "w"), "unknown parameters encdec/w"),
        (put(np.zeros((3, 3, 3, 32), "f4"), *NETWORK, "conv_in", "kernel"), "Fourier features"),
    ],
)
def test_a_checkpoint_of_another_kind_is_named(change, message, tmp_path):
    path = checkpoint(tmp_path, change=change)
    if message is None:  # an empty map changes nothing
        read_official(path, SIZE)
        return
    with pytest.raises(InputError, match=message):
        read_official(path, SIZE)


def array_of_many_blocks():
    """A file of a few kilobytes whose network would take terabytes."""
    tree = {"score_model": {"conv_out": {"bias": np.zeros(3, "f4")}}}
    tree["score_model"]["conv_in"] = {"kernel": np.zeros((0, 0, 15, 1 << 20), "f4")}
    tree["score_model"] |= {f"down.block_{i}": {"a": np.zeros(0, "f4")} for i in range(20)}
    return packed({"step": 1, "params": tree, "ema_params": tree})


def lying_array(claimed):
    content = msgpack.packb(((claimed,), "float32", b"\0" * 8))
    tree = {"score_model": {"conv_out": {"bias": msgpack.ExtType(1, content)}}}
    return msgpack.packb({"step": 1, "params": tree, "ema_params": tree})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",  # the start of a pickle
        b"\xdd\xff\xff\xff\xff",  # a list of four billion entries
        b"\xdd\x00\xff\xff\xff" * 100 + b"\0" * (1 << 24),  # lists of as many as there are bytes
        b"\xdf\xff\xff\xff\xff" + b"\xa1a" * 100,  # a map of as many
        b"\x81\xa1a" * 5000,  # maps in maps
        b"\x81\xa1a" * 500 + b"\x01",
        packed({"a": 1})[:-1],
        packed([1, 2]),
        lying_array(1 << 40),
        lying_array(-2),
        lying_array(3),
        array_of_many_blocks(),
    ],
)
def test_a_hostile_file_is_refused_and_takes_no_memory(content, tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_official(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


# diffusers


@pytest.fixture
def bridge():
    """The module of the bridges."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from variational_diffusion.interchange import diffusers  # noqa: PLC0415

    return diffusers


def unet_of_diffusers(**options):
    from diffusers import UNet2DModel  # noqa: PLC0415

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )


def dit_of_diffusers():
    from diffusers import DiTTransformer2DModel  # noqa: PLC0415

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,  # the second is a variance, which is not used
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_embeds_ada_norm=10,
        patch_size=2,
        norm_num_groups=4,
    )


def test_a_unet_of_diffusers_learns_as_a_network_with_the_lattice(bridge, generator):
    inputs = bridge.DiffusersNetwork.in_channels(1, 17)
    network = bridge.DiffusersNetwork(unet_of_diffusers(in_channels=inputs), levels=17)
    vdm = VDM(network, FixedLinear(), Discretized(17), (1, 8, 8))
    x = torch.randint(0, 17, (4, 1, 8, 8), generator=generator)
    draws = vdm.draw(4, generator)
    optimizer = torch.optim.Adam(vdm.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = vdm.vlb(x, draws=draws).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert vdm.sample(2, steps=2, generator=generator).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("ends", [(-13.3, 5.0), (-7.0, 3.0)])
def test_gamma_is_their_time_from_0_to_1000(ends, bridge, generator):
    model = unet_of_diffusers(in_channels=1).eval()
    network = bridge.DiffusersNetwork(model, gamma_min=ends[0], gamma_max=ends[1])
    z = torch.randn(3, 1, 8, 8, generator=generator)
    gamma = torch.lerp(torch.tensor(ends[0]), torch.tensor(ends[1]), torch.tensor([0, 0.25, 1.0]))
    theirs = model(z, torch.tensor([0.0, 250.0, 1000.0])).sample
    torch.testing.assert_close(network(z, gamma), theirs, rtol=1e-4, atol=1e-4)


def test_a_dit_is_conditioned_on_labels_and_on_none(bridge, generator):
    model = dit_of_diffusers()
    network = bridge.DiffusersNetwork(model)
    z, gamma = torch.randn(2, 1, 8, 8, generator=generator), torch.tensor([-5.0, 1.0])
    labels = torch.tensor([3, 7])
    with torch.no_grad():
        given, none = network(z, gamma, labels), network(z, gamma)
        assert torch.equal(given, network(z, gamma, labels))  # in training mode: nothing is dropped
        times = 1000 * (gamma + 13.3) / 18.3
        theirs = model(z, timestep=times, class_labels=labels).sample[:, :1]
        torch.testing.assert_close(given, theirs)
        theirs = model(z, timestep=times, class_labels=torch.tensor([10, 10])).sample[:, :1]
        torch.testing.assert_close(none, theirs)
    assert (given - none).abs().max() > 1e-4


@pytest.mark.parametrize("schedule", ["adaptive", "monotone"])
def test_a_pipeline_draws_the_samples_of_the_model_bit_for_bit(schedule, bridge, tmp_path):
    vdm = trained("unet", schedule, levels=256, options={"widths": [8], "levels": 256})
    chain = {"gammas": uniform_in_time(vdm.schedule, 5).detach(), "sampler": "ancestral"}
    samples = vdm.sample(3, **chain, generator=torch.Generator().manual_seed(2))
    expected = vdm.decoder.encode(samples) / 2 + 0.5
    pipeline = bridge.pipeline(vdm)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = type(pipeline).from_pretrained(tmp_path / "pipeline")
    for each in (pipeline, loaded):
        each.set_progress_bar_config(disable=True)
        options = {"batch_size": 3, "num_inference_steps": 5}
        seeds = [torch.Generator().manual_seed(2) for _ in range(2)]
        assert torch.equal(each(**options, generator=seeds[0], output_type="pt").images, expected)
        pictures = each(**options, generator=seeds[1]).images
        assert np.array_equal(np.stack([np.asarray(p) for p in pictures]), samples[:, 0].numpy())
    back = VDM.from_pretrained(tmp_path / "pipeline" / "unet")
    assert torch.equal(back.sample(3, **chain, generator=torch.Generator().manual_seed(2)), samples)


def test_a_pipeline_takes_images_only(bridge):
    vdm = trained("mlp", shape=(12,))
    with pytest.raises(InputError, match="make discrete images of one or three channels"):
        bridge.pipeline(vdm)
