"""A model as a folder for the hub: bit-identical round trips, honest cards, damaged files."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from variational_diffusion.cli import run
from variational_diffusion.config import Component, ModelConfig
from variational_diffusion.errors import InputError
from variational_diffusion.model import VDM, build
from variational_diffusion.schedules import SCHEDULES, FixedLinear
from variational_diffusion.storage.tensors import read_tensors, write_tensors

MEASURED = {
    "data": "digits",
    "split": "test",
    "examples": 297,
    "estimator": "vlb",
    "bits_per_dim": 1.72344,
    "standard_error": 0.0171,
    "command": "vdm evaluate RUN",
}


def trained(schedule="adaptive", *, decoder="discretized", **options):
    """A model as training may leave it: no parameter and no buffer is where it began."""
    vdm = build(
        ModelConfig(
            shape=(1, 6, 5),
            decoder=Component(name=decoder, options=options),
            schedule=Component(name=schedule),
            network=Component(name="unet", options={"widths": [8], "dropout": 0.1}),
        )
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in [*vdm.parameters(), *vdm.schedule.buffers()]:
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return vdm


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A run of a few steps, evaluated on its test split and on other data."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    words = ["train", "digits", "--run", str(folder), "--steps", "2", "--threads", "1", "--json"]
    assert run([*words, "--network", "mlp", "--set", "network.width=16"]) == 0
    return folder


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_model_comes_back_with_the_same_outputs_bit_for_bit(schedule, tmp_path):
    vdm = trained(schedule, levels=17).eval()
    vdm.save_pretrained(tmp_path / "model")
    back = VDM.from_pretrained(tmp_path / "model")
    assert not back.training
    assert back.config == vdm.config
    x = torch.arange(60).reshape(2, 1, 6, 5) % 17
    seeds = [torch.Generator().manual_seed(1) for _ in range(4)]
    assert torch.equal(vdm.vlb(x, generator=seeds[0]).total, back.vlb(x, generator=seeds[1]).total)
    ours, theirs = (
        model.sample(3, steps=4, generator=seed)
        for model, seed in zip((vdm, back), seeds[2:], strict=True)
    )
    assert torch.equal(ours, theirs)


def test_real_valued_data_keep_their_location_and_scale(tmp_path):
    vdm = trained(decoder="gaussian", location=[3.0], scale=[0.5]).eval()
    vdm.save_pretrained(tmp_path / "model")
    back = VDM.from_pretrained(tmp_path / "model")
    x = torch.randn(2, 1, 6, 5)
    assert torch.equal(vdm.encode(x), back.encode(x))


def test_the_folder_holds_nothing_that_could_run(tmp_path):
    trained(levels=17).save_pretrained(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1  # safetensors alone would keep the weights from other users


def test_a_card_says_what_was_measured_and_how(tmp_path):
    vdm = trained(levels=17)
    vdm.save_pretrained(tmp_path / "model", model_card_kwargs={"evaluations": [MEASURED]})
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert "1.7234 ± 0.0171" in card.text
    assert "`vdm evaluate RUN`" in card.text
    assert "297" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_name) == ("bits_per_dim", "digits")
    assert result.metric_value == pytest.approx(1.7234)
    assert card.data.library_name == "variational-diffusion"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    parameters = sum(parameter.numel() for parameter in vdm.parameters())
    assert f"| parameters | {parameters:,} |" in card.text


def test_a_card_says_so_where_nothing_was_measured(tmp_path):
    trained(levels=17).save_pretrained(tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert "Not measured." in card.text
    assert card.data.eval_results is None


def test_a_model_made_by_hand_says_what_it_lacks(tmp_path):
    made = trained(levels=17)
    vdm = VDM(made.network, FixedLinear(), made.decoder, made.shape)
    with pytest.raises(InputError, match=r"config = None: .*build\(config\)"):
        vdm.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_with_files_is_not_written_into(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is no empty folder"):
        trained(levels=17).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def flipped(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def rewritten(**values):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def weights_of_a_run(folder: Path) -> None:
    path = folder / "model.safetensors"
    write_tensors(path, read_tensors(path)[0], {"kind": "ema", "run": "0123456789abcdef"})


OTHER_MODEL = {
    "shape": [1, 6, 5],
    "decoder": {"name": "discretized"},
    "schedule": {"name": "fixed-linear"},
    "network": {"name": "mlp"},
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped, "do not match their digest"),
        (rewritten(format=2), "has format 2, this version reads 1"),
        (rewritten(library_name="timm"), "holds no model of variational-diffusion"),
        (rewritten(model={"shape": [1]}), "does not match the digest"),
        (rewritten(model=OTHER_MODEL), "does not match the digest"),
        (weights_of_a_run, "does not match the digest"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(damage, message, tmp_path):
    trained(levels=17).save_pretrained(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        VDM.from_pretrained(tmp_path / "model")


def test_a_repository_is_read_from_the_hub(tmp_path, monkeypatch):
    vdm = trained(levels=17)
    vdm.save_pretrained(tmp_path / "model")
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        return str(tmp_path / "model" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    back = VDM.from_pretrained("someone/digits", revision="v1")
    assert torch.equal(back.network.conv_in.weight, vdm.network.conv_in.weight)
    assert asked == [
        ("someone/digits", name, {"revision": "v1"})
        for name in ("config.json", "model.safetensors")
    ]


@pytest.mark.parametrize("name", ["someone/nothing", "not a name", "a/b/c"])
def test_a_repository_that_is_not_there_is_one_line(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"'{name}' is no folder, and the hub does not give it"):
        VDM.from_pretrained(name)


class Hub:
    """Stands for huggingface_hub's HfApi: keeps what is uploaded."""

    def __init__(self, token=None):
        pass

    uploaded: dict[str, bytes]

    def create_repo(self, repo_id, *, private, exist_ok):
        assert (private, exist_ok) == (True, True)
        return type("Repository", (), {"repo_id": repo_id})

    def upload_folder(self, repo_id, folder_path, **options):
        type(self).uploaded = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        return f"https://hub.test/{repo_id}"


def test_export_and_push_write_the_same_folder(digits_run, tmp_path, monkeypatch, capsys):
    evaluate = ["evaluate", str(digits_run), "--limit", "20", "--seed", "3", "--threads", "1"]
    assert run([*evaluate, "--table", str(tmp_path / "rows.csv")]) == 0
    assert run(["export", str(digits_run), "--hub", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| digits | 20 of 297 test examples, drawn with seed 0 | vlb |" in card
    assert "`vdm evaluate RUN --limit 20 --seed 3`" in card
    assert str(tmp_path) not in card
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    capsys.readouterr()
    assert run(["push", str(digits_run), "someone/digits", "--private"]) == 0
    assert capsys.readouterr().out == "https://hub.test/someone/digits\n"
    for name in ("config.json", "README.md"):
        assert Hub.uploaded[name] == (tmp_path / "model" / name).read_bytes()
    (tmp_path / "uploaded").mkdir()
    for name, content in Hub.uploaded.items():
        (tmp_path / "uploaded" / name).write_bytes(content)
    ours, theirs = (
        VDM.from_pretrained(tmp_path / name).state_dict() for name in ("model", "uploaded")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_figures_of_other_weights_are_not_on_the_card(digits_run, tmp_path, capsys):
    evaluate = ["evaluate", str(digits_run), "--limit", "10", "--weights", "raw", "--threads", "1"]
    assert run(evaluate) == 0
    capsys.readouterr()
    assert run(["export", str(digits_run), "--hub", str(tmp_path / "ema")]) == 0
    assert "--weights raw" not in (tmp_path / "ema" / "README.md").read_text()
    words = ["export", str(digits_run), "--hub", str(tmp_path / "raw"), "--weights", "raw"]
    assert run(words) == 0
    assert (
        "`vdm evaluate RUN --limit 10 --weights raw`"
        in (tmp_path / "raw" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "nothing to write: give --hub FOLDER, --onnx FILE, or both"),
        (["export", "--hub", "."], "exists and is no empty folder"),
        (["push", "not a name"], "repository = 'not a name': the hub does not take it"),
    ],
)
def test_mistakes_are_one_line(words, message, digits_run, capsys):
    assert run([words[0], str(digits_run), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
