"""Networks of one's own: trained, stored without their code, opened again, and refused."""

import sys

import pytest
import torch
from torch import nn

import variational_diffusion as vd
from commands import output

CODE = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, shape, width=8):
        super().__init__()
        self.first = nn.Conv2d(shape[0] + 1, width, 3, padding=1)
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, z, gamma, conditioning=None):
        plane = (gamma / 10)[:, None, None, None].expand(-1, 1, *z.shape[2:])
        return self.last(torch.nn.functional.silu(self.first(torch.cat([z, plane], 1))))


class Normalised(Tiny):
    def __init__(self, shape):
        super().__init__(shape)
        self.first = nn.Sequential(self.first, nn.BatchNorm2d(8))


class Half(Tiny):
    def forward(self, z, gamma, conditioning=None):
        return super().forward(z, gamma).bfloat16()


class Two(Tiny):
    def forward(self, z, gamma):
        return super().forward(z, gamma)


def number(shape):
    return 3


class Lazy(Tiny):
    def forward(self, z, gamma, conditioning=None):
        return self.last(z)
"""
SETTINGS = {"training.batch_size": 8}


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of networks in the working directory, not imported yet."""
    (tmp_path / "ownnets.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "ownnets"
    sys.modules.pop("ownnets", None)


def test_a_network_of_ones_own_by_command_and_python(nets, tmp_path, capsys):
    train = ["train", "digits", "--run", "run", "--steps", "2", "--batch-size", "8"]
    output(capsys, [*train, "--network", "ownnets:Tiny", "--precision", "float32"])
    sys.modules.pop("ownnets")
    run = vd.Run.open("run")
    assert run.config.model.network.name == "ownnets:Tiny"
    assert run.config.model.network.options == {"width": 8}
    told = "is of one's own, and its code is not stored .*--network ownnets:Tiny to a command"
    with pytest.raises(vd.InputError, match=told):
        run.load()
    assert "ownnets" not in sys.modules
    sample = ["sample", "run", "--n", "1", "--steps", "2", "--out", "a.npy"]
    assert "its code is not stored" in output(capsys, sample, code=2).err
    output(capsys, [*sample, "--network", "ownnets:Tiny"])
    tiny = sys.modules["ownnets"].Tiny
    same = vd.train(
        "digits",
        "python",
        steps=2,
        network=tiny,
        settings=SETTINGS,
        precision="float32",
        progress=False,
    )
    weights = vd.Run.open("run", network=tiny).load("raw").state_dict()
    assert all(torch.equal(weights[k], v) for k, v in same.load("raw").state_dict().items())
    more = vd.train(None, "run", steps=3, network="ownnets:Tiny", progress=False)
    assert more.states()[0] == 3
    more.load().save_pretrained("folder")
    assert not list((tmp_path / "folder").glob("*.py"))
    with pytest.raises(vd.InputError, match="its code is not stored"):
        vd.VDM.from_pretrained("folder")
    again = vd.VDM.from_pretrained("folder", network=tiny)
    assert torch.equal(again.network.first.weight, more.load().network.first.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Normalised", "depends on the other examples of the batch, as with batch normalisation"),
        ("Half", "has shape .* and type torch.bfloat16: return an estimate"),
        ("Two", "network\\(z, gamma, conditioning\\) with .* raised TypeError"),
        ("Lazy", "raised RuntimeError: .*expected"),
        ("number", "makes int, and no nn.Module"),
        ("Missing", "cannot be imported"),
    ],
)
def test_what_is_no_network_is_refused_before_the_first_step(nets, name, message):
    with pytest.raises(vd.InputError, match=message):
        vd.train(
            "digits", "run", steps=2, network=f"{nets}:{name}", settings=SETTINGS, progress=False
        )


def test_a_network_of_the_table_needs_none(tmp_path):
    class Own(nn.Module):
        def __init__(self, shape):
            super().__init__()

    options = {"steps": 1, "settings": {**SETTINGS, "network.widths": [8]}, "progress": False}
    vd.train("digits", tmp_path, **options)
    with pytest.raises(vd.InputError, match="'unet' comes with this package: leave out network"):
        vd.Run.open(tmp_path, network=Own).load()
