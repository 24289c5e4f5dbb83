"""Files of earlier versions, which every later version reads: docs/format.md promises it.

They were written by `python tests/test_compression_golden.py KIND`, which overwrites nothing.
"""

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coding import coded, group_of, header_of, known, quick_coder, read
from variational_diffusion.compression import ChainCoder, Origin, Table, Writer, format2
from variational_diffusion.compression.container import READ, VERSION
from variational_diffusion.compression.stack import Stack
from variational_diffusion.decoders import Discretized
from variational_diffusion.model import VDM
from variational_diffusion.networks import UNet
from variational_diffusion.schedules import FixedLinear

GOLDEN = Path(__file__).parent / "golden"


def unet_coder():
    """A U-Net whose weights are made of integers."""
    ends = {"gamma_min": -9.0, "gamma_max": 5.0}
    network = UNet((3, 8, 8), **ends, levels=17, widths=[8], blocks=1, attention=False)
    vdm = VDM(network, FixedLinear(**ends), Discretized(17), (3, 8, 8)).eval()
    with torch.no_grad():
        for i, weights in enumerate(vdm.network.parameters()):
            k = torch.arange(weights.numel()).reshape(weights.shape)
            weights.copy_(((k * 7919 + 104_729 * i) % 1009 - 504).float() / 8192)
    return ChainCoder(vdm, np.linspace(5.0, -9.0, 6))


def written_with(coder):
    """Return the images of each group, their names, and where they come from."""
    if coder.levels == 17:
        k = np.arange(30 * 3 * 8 * 8, dtype=np.int64)
        values = (k * k * 31 + k * 7919) % 1_000_003 % 17  # as good as noise
        groups = [list(values.astype(np.uint8).reshape(30, 3, 8, 8))]
        return groups, [None], Origin(dtype="<i4", axes="last")
    images = list(known(30, coder.shape))
    images[4] = np.full((1, 5, 30), 7, np.uint8)
    images[9] = np.zeros(coder.shape, np.uint8)
    groups = [images[:24], images[24:]]
    names = [[f"a/{i}.png" for i in range(24)], [f"b/{i}.bmp" for i in range(24, 30)]]
    return groups, names, Origin(mode="L")


CODERS = {"grey": quick_coder, "colour": unet_coder, "empty": quick_coder}
FILES = [f"{kind}-{version}" for version in READ for kind in CODERS]


def test_every_golden_file_is_known():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_golden_files_are_read(name):
    kind, version = name.split("-")
    coder = CODERS[kind]()
    groups, names, origin = written_with(coder)
    if kind == "empty":
        groups, names = [], []
    container, back = read((GOLDEN / f"{name}.vdmz").read_bytes(), coder)
    assert container.version == int(version)
    assert container.header.origin == origin
    assert container.damaged == []
    images = [image for group in groups for image in group]
    assert container.images == len(back) == len(images)
    assert all(np.array_equal(back[i], image) for i, image in enumerate(images))
    kept = {image.number: image.name for image in container.decoded(coder)}
    expected = [n for group in names for n in group or [None] * len(groups[0])]
    assert [kept[i] for i in range(len(images))] == expected


def test_noise_wider_than_levels_is_read_as_format_2_wrote_it():
    """No golden file has it; the digest is of what the last version that wrote format 2 gave."""
    words, positions = (
        np.random.Philox(key=key).random_raw(n) >> np.uint64(32)
        for key, n in ((0, 9000), (1, 5000))
    )
    stack = Stack(words.astype(np.uint32), sealed=True)
    x = format2.pop_levels(stack, positions * (1000 / 2**32), 0.03, 1000)
    found = hashlib.sha256(x.astype("<i8").tobytes() + stack.words().astype("<u4").tobytes())
    assert found.hexdigest()[:16] == "4ac1542e621f1d7f"


def write(kind):
    """Write a golden file of the format that is written now."""
    coder, file = CODERS[kind](), io.BytesIO()
    groups, names, origin = written_with(coder)
    with Writer(file, header_of(coder, origin=origin), identity=bytes(range(16))) as writer:
        for images, named in zip(groups, names, strict=True) if kind != "empty" else ():
            if kind == "colour":  # by the model, whatever it takes
                stack = coded(coder, np.stack(images)).payload
                writer.add(len(images), Table(stack=len(stack)), stack)
            else:
                group = group_of(coder, images, named)
                writer.add(len(images), group.table, group.payload)
    with (GOLDEN / f"{kind}-{VERSION}.vdmz").open("xb") as target:
        target.write(file.getvalue())


if __name__ == "__main__":
    write(sys.argv[1])
