"""vdm serve: what it reads and what it does."""

import io
import math
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from variational_diffusion import compress, inpaint
from variational_diffusion.cli import run as vdm
from variational_diffusion.compression import Container
from variational_diffusion.errors import InputError
from variational_diffusion.likelihood import ContinuousBound
from variational_diffusion.numerics import bits_per_dim
from variational_diffusion.run.directory import Run
from variational_diffusion.sampling import SAMPLERS
from variational_diffusion.web import MAX_BYTES, Studio, read_upload
from variational_diffusion.web.uploads import read_mask

TRAIN = ["--steps", "30", "--batch-size", "16", "--threads", "1", "--condition", "label"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve") / "run"
    small = ["--set", "network.widths=[8,8]"]
    assert vdm(["train", "digits", "--run", str(path), *TRAIN, *small]) == 0
    return Studio(Run.open(path), "ema")


def png(values, **options):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG", **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG that claims a size, and has no pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.png", png(np.zeros((8, 8), np.uint8)))
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
HOSTILE = {
    "bomb.png": (png_header(50_000, 50_000), "too many pixels|50,000 by 50,000 pixels"),
    "large.png": (png_header(3000, 3000), "3,000 by 3,000 pixels"),
    "image.svg": (SVG, "no image that can be read"),
    "image.eps": (EPS, "no image that can be read"),
    "image.zip": (zipped(), "no image that can be read"),
    "empty.png": (b"", "is empty"),
    "../../name.png": (b"root:x:0:0", "no image that can be read"),
    "cut.png": (png(np.zeros((64, 64), np.uint8))[:60], "damaged"),
}


# uploads


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_told_in_one_line(name):
    content, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as raised:
        read_upload(content, 1, 256, (8, 8))
    assert "\n" not in str(raised.value)


def test_an_upload_of_too_many_bytes_is_not_looked_at():
    with pytest.raises(InputError, match="bytes: up to"):
        read_upload(png(np.zeros((8, 8), np.uint8)) + bytes(MAX_BYTES), 1, 256)


def test_pixels_come_as_they_are():
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        values = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        read = read_upload(png(values.squeeze(-1) if channels == 1 else values), channels, 256)
        np.testing.assert_array_equal(read, np.moveaxis(values, -1, 0))
    deep = rng.integers(0, 65_536, (5, 7), dtype=np.uint16)
    np.testing.assert_array_equal(read_upload(png(deep), 1, 65_536)[0], deep)
    np.testing.assert_array_equal(read_upload(png(deep), 3, 256), np.stack([deep >> 8] * 3))


def test_pixels_are_brought_to_the_levels_and_the_size():
    ramp = np.arange(0, 256, 17, dtype=np.uint8)[None].repeat(16, 0)
    np.testing.assert_array_equal(read_upload(png(ramp), 1, 16)[0], ramp // 17)
    assert read_upload(png(ramp), 3, 17, (8, 4)).shape == (3, 8, 4)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (read_upload(png(clear), 1, 17) == 16).all()  # transparent: on white


def test_a_mask_is_true_where_anything_is_painted():
    layer = np.zeros((40, 80, 4), np.uint8)
    layer[7, 11, 3] = 255
    expected = np.zeros((4, 8), bool)
    expected[0, 1] = True
    np.testing.assert_array_equal(read_mask(png(layer), (4, 8)), expected)


# what is done


def test_samples_are_those_of_the_model(studio):
    strong = {"guidance": 1e4, "seed": 5}  # the model has hardly learned its labels
    *way, last = studio.samples(3, 6, "ddim", label="3", **strong)
    gammas = [gamma for _, gamma, _, _ in [*way, last]]
    assert gammas == sorted(gammas, reverse=True)
    assert [share for share, *_ in way] == [step / 6 for step in range(6)]
    expected = studio.run.sample(3, steps=6, sampler="ddim", label="3", **strong)
    np.testing.assert_array_equal(last[2], expected)
    *_, other = studio.samples(3, 6, "ddim", label="4", **strong)
    assert not np.array_equal(last[2], other[2])


def test_the_forward_process_goes_from_the_image_to_noise(studio):
    x = studio.test_example(0)
    start, end = studio.forward(x, 0.0), studio.forward(x, 1.0)
    low, high = studio.vdm.schedule.end_points.tolist()
    assert (start.gamma, end.gamma) == pytest.approx((low, high))
    assert end.snr == pytest.approx(math.exp(-high))
    assert np.abs(start.z.astype(float) - x).mean() < 0.5
    assert np.abs(end.z.astype(float) - x).mean() > 3


def test_the_likelihood_is_the_bound(studio):
    x = studio.test_example(1)
    found = studio.likelihood(x)
    batch = torch.from_numpy(x.astype(np.int64)).expand(200, *x.shape)
    generator = torch.Generator().manual_seed(9)
    bits = bits_per_dim(ContinuousBound(8)(studio.vdm, batch, generator).total, 64)
    error = math.hypot(found.error, float(bits.std()) / math.sqrt(len(bits)))
    # 8 draws: a Student's t of 7 degrees beyond 7 has a chance of 2e-4; seeded
    assert abs(found.bits_per_dim - float(bits.mean())) < 7 * error
    assert found.map.mean() == pytest.approx(found.bits_per_dim, rel=0.1)
    assert found.place == (found.others < found.bits_per_dim).mean()


def test_inpainting_keeps_what_is_not_painted(studio):
    x, mask = studio.test_example(2), np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    *_, (share, result) = studio.inpaint(x, mask, 5)
    assert share == 1
    np.testing.assert_array_equal(result[0][~mask], x[0][~mask])
    assert (result[0][mask] != x[0][mask]).any()
    given = {"steps": 5, "draws": 1, "condition": "none", "threads": 1}
    expected = inpaint(studio.run, mask[None], x[None], **given).results[0, 0]
    np.testing.assert_array_equal(result, expected)
    with pytest.raises(InputError, match="mask = empty"):
        next(studio.inpaint(x, np.zeros((8, 8), bool), 5))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_what_python_draws(studio, sampler):
    *_, last = studio.samples(2, 3, sampler, seed=4)
    expected = studio.run.sample(2, steps=3, sampler=sampler, condition="none", seed=4)
    np.testing.assert_array_equal(last[2], expected)


@pytest.mark.parametrize("size", [(8, 8), (21, 30)])
def test_decompressing_gives_the_image_back(studio, size):
    x = np.random.default_rng(0).integers(0, 17, (1, *size), dtype=np.uint8)
    found = studio.compress(x)
    np.testing.assert_array_equal(studio.decompress(found.content), x)
    assert Container(io.BytesIO(found.content), "it").images == 1
    assert found.pictures["PNG"] > 0
    damaged = bytearray(found.content)
    damaged[-60] ^= 1
    with pytest.raises(InputError, match="damaged"):
        studio.decompress(bytes(damaged))


def test_the_page_the_command_and_python_write_the_same_file(studio, tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (1, 17, 30), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x[None])
    run, typed, written = studio.run, tmp_path / "typed.vdmz", tmp_path / "written.vdmz"
    assert vdm(["compress", str(run.path), str(tmp_path / "x.npy"), "--out", str(typed)]) == 0
    compress(run, x[None], written)
    assert studio.compress(x).content == typed.read_bytes() == written.read_bytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: next(s.samples(17, 5, "ddim")), "count = 17"),
        (lambda s: next(s.samples(1, 10**9, "ddim")), "steps = 1000000000"),
        (lambda s: next(s.samples(1, 5, "nothing")), "sampler = 'nothing'"),
        (lambda s: s.forward(s.test_example(0), 1.5), "t = 1.5"),
        (lambda s: s.given("11"), "label = '11'"),
        (lambda s: s.given("1", guidance=-1.0), "guidance = -1"),
        (lambda s: s.compress(np.zeros((1, 400, 400), np.uint8)), "2,500 tiles"),
    ],
)
def test_what_is_out_of_range_is_refused(studio, call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call(studio)


def test_a_model_of_no_images_is_refused(capsys, tmp_path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(99, 2)))
    run = str(tmp_path / "run")
    few = ["--steps", "2", "--batch-size", "8", "--threads", "1"]
    assert vdm(["train", str(tmp_path / "points.npy"), "--run", run, *few]) == 0
    capsys.readouterr()
    assert vdm(["serve", run]) == 2
    told = capsys.readouterr().err
    assert "vdm serve shows images of integers" in told
    assert told.count("\n") == 1
