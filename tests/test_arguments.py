"""What Python users give to a model: it works, or one line says what is allowed.

In a process of its own, where types are not checked at run time as the other tests do.
"""

import subprocess
import sys

import pytest

from commands import train_digits

SCRIPT = """
import sys
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset
import variational_diffusion as vd

run = vd.Run.open(sys.argv[1])
vdm = run.model()
x = torch.randint(0, 17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
z, nan = torch.randn(2, 1, 8, 8), float("nan")
grid = vd.grids.uniform_in_time(vdm.schedule, 3).detach()
level, lower = torch.tensor(2.0), torch.tensor(1.0)

def bound(x, **options):
    return vdm.vlb(x, generator=torch.Generator().manual_seed(0), **options).total

def drawn(**options):
    return vdm.sample(2, generator=torch.Generator().manual_seed(0), **options)

def same(a, b):
    assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), (a, b)

right = bound(x)
for other in (x.numpy(), x.to(torch.uint8), x.numpy().astype(">i4"), x.numpy()[::-1][::-1],
              x.tolist(), x.numpy().astype(np.uint16)):
    same(bound(other), right)
bits = x > 8
same(bound(bits), bound(bits.long()))
for other in (grid.double(), grid.numpy(), grid.tolist(), grid.double().numpy()):
    same(bound(x, gammas=other), bound(x, gammas=grid))
    same(drawn(gammas=other), drawn(gammas=grid))
same(drawn(steps=np.int64(3)), drawn(steps=3))
for a in (z, z.numpy(), z.double(), z.double().numpy()):
    for g in (2.0, level, level.double(), np.float64(2), np.full(2, 2.0), [2.0, 2.0], 2):
        same(vdm.denoise(a, g).noise, vdm.denoise(z, level).noise)
        same(vdm.drift(a, g), vdm.drift(z, level))
        same(vdm.reverse(a, g, 1).mean, vdm.reverse(z, level, lower).mean)
a = vd.evaluate(vdm, x, rounds=1)
for other in (x.numpy(), TensorDataset(x), TensorDataset(x, x[:, 0, 0, 0]), x.tolist(),
              DataLoader(TensorDataset(x), batch_size=3), DataLoader(x, batch_size=2)):
    assert vd.evaluate(vdm, other, rounds=1).bits_per_dim == a.bits_per_dim
    assert vd.evaluate(run, other, rounds=1).bits_per_dim == a.bits_per_dim

WRONG = {
    "vlb": [((v,), {}) for v in (x[:0], x[0], x[:, :, :4], x[None], "abc", None, {1}, [[1], [1, 2]],
            x + 17, x - 17, x.float(), x * nan, object(), b"ab", x.to(torch.complex64))]
        + [((x,), {"steps": v}) for v in (0, -1, 1.5, "3", True, nan)]
        + [((x,), {"gammas": v}) for v in (grid[:1], grid.flip(0), grid * nan, grid[None], "x", [],
            grid[:-1], grid + 1, 3.0)],
    "sample": [((v,), {"steps": 2}) for v in (0, -1, 1.5, 2.0, "3", None, True, nan, [2])]
        + [((2,), {"steps": v}) for v in (0, -1, 1.5, "3", True)]
        + [((2,), {"steps": 2, "sampler": v}) for v in ("x", 3, "", "DDIM ")]
        + [((2,), {"gammas": v}) for v in (grid[:1], grid * nan, grid[None], "x", [])],
    "denoise": [((v, level), {}) for v in (z[:0], z[0], z[:, :, :4], "z", None, z.half(), z.long())]
        + [((z, v), {}) for v in (torch.zeros(3), torch.zeros(2, 1), "x", None, {})],
    "reverse": [((v, level, lower), {}) for v in (z[:0], z[0], "z", None)]
        + [((z, v, lower), {}) for v in (torch.zeros(3), "x", None)],
    "drift": [((v, level), {}) for v in (z[:0], z[0], "z")],
    "draw": [((v,), {}) for v in (0, -1, 1.5, "2", None)],
}
CALLS = [(f"vdm.{name}", getattr(vdm, name), *how) for name in WRONG for how in WRONG[name]]
CALLS += [("run.sample", run.sample, (v,), {"steps": 2}) for v in (0, -1, 1.5, "3", None, True)]
CALLS += [("run.sample", run.sample, (1,), {"steps": 2, **v}) for v in (
    {"seed": -1}, {"seed": 1.5}, {"seed": "x"}, {"threads": 0}, {"threads": 1.5}, {"device": "gpu"},
    {"weights": "x"}, {"sampler": "x"}, {"eta": nan, "sampler": "ddim"}, {"clip": nan},
    {"clip": 7.0}, {"stop_early": nan}, {"label": "x"}, {"guidance": nan}, {"grid": "gama"},
    {"variance": "x"})]
for f in (vd.evaluate, vd.score):
    subject = vdm if f is vd.evaluate else run
    CALLS += [(f.__name__, f, (subject, v), {}) for v in (
        x[:0], x[0], x[:, :, :4], x.float() + 0.5, [1, 2], 3.5, "nosuch", {1}, b"ab", {"a": x},
        np.array([object()]), np.array(["a"]), x + 17, -x, (a for a in x))]
    CALLS += [(f.__name__, f, (subject, x), {"seed": v}) for v in (-1, 1.5, "x", None)]
bad = []
for name, function, arguments, options in CALLS:
    try:
        function(*arguments, **options)
        bad.append((name, str(arguments)[:60], options, "went through"))
    except vd.InputError as error:
        if "\\n" in str(error):
            bad.append((name, str(error)))
    except Exception as error:
        bad.append((name, str(arguments)[:60], options, type(error).__name__, str(error)[:80]))
for line in bad:
    print(*line)
print(len(CALLS), "calls,", len(bad), "wrong")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("arguments"))


@pytest.mark.timeout(200)
def test_what_is_given_works_or_gets_one_line(run):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, run]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.stderr == ""
    assert done.stdout.endswith("calls, 0 wrong\n"), done.stdout
