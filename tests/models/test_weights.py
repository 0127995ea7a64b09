"""Finished models on disk: saving, loading by every name a user would try, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig, reference
from ivcl_fast.errors import UserError
from ivcl_fast.models import backbone
from ivcl_fast.models.weights import CHECKSUMS, MODEL, read_weights, weights_file
from tests.models.test_model import CFG, SIZES
from tests.training.test_checkpoint import flip_a_bit

NAMES = [f"answer {n}" for n in range(5)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder ``runs/RUN`` with a pretrained model and two classifiers."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "RUN"
    IVCL(CFG).save_pretrained(folder / "pretrain")
    for name in ("finetune", "scratch"):
        IVCLClassifier(CFG, 5).save_pretrained(folder / name)
    (folder / "config.json").write_text("{}")  # of the run, not of a model
    return folder


def told(call, *arguments, **options) -> str:
    """The one line of the mistake."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- Saving and loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 7])
def test_a_folder_gives_the_model_back(tmp_path, classes):
    fast = IVCL(CFG) if classes is None else IVCLClassifier(CFG, classes)
    fast.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    loaded = type(fast).from_pretrained(str(tmp_path))
    assert loaded.cfg == CFG and not loaded.training
    assert same_weights(loaded, fast)
    plain = reference.IVCL(CFG) if classes is None else reference.IVCLClassifier(CFG, classes)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)


def test_class_names_stay_with_the_model(tmp_path):
    named, plain = IVCLClassifier(CFG, 5, NAMES), IVCLClassifier(CFG, 5)
    assert reference.IVCLClassifier(CFG, 5, class_names=NAMES).class_names == NAMES
    assert list(named.state_dict()) == list(plain.state_dict())
    for name, model in (("named", named), ("plain", plain)):
        model.save_pretrained(tmp_path / name)
        assert IVCLClassifier.from_pretrained(tmp_path / name).class_names == model.class_names
    assert json.loads((tmp_path / "plain" / "config.json").read_text()).keys() == {
        "cfg", "num_classes",
    }  # fmt: skip
    for wrong in (NAMES[:4], "abcde", [1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match=r"^class_names: "):
            IVCLClassifier(CFG, 5, wrong)


def test_load_pretrained(tmp_path):
    pretrained = IVCL(CFG)
    pretrained.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path / "model.safetensors"), pretrained.state_dict()):
        classifier = IVCLClassifier(CFG, 5)
        loaded = classifier.load_pretrained(source)
        assert {key.split(".")[0] for key in loaded} == {"encoder", "temporal"}
        state = classifier.state_dict()
        assert all(torch.equal(state[k], pretrained.state_dict()[k]) for k in loaded)


def test_a_runs_folder_stands_for_its_models(run):
    pretrained = IVCL.from_pretrained("runs/RUN")
    assert same_weights(pretrained, IVCL.from_pretrained(run / "pretrain"))
    classifier = IVCLClassifier.from_pretrained(pretrained_model_name_or_path="runs/RUN")
    assert same_weights(classifier, IVCLClassifier.from_pretrained("runs/RUN/finetune"))
    assert not same_weights(classifier, IVCLClassifier.from_pretrained("runs/RUN/scratch"))

    assert weights_file(run) == run / "pretrain" / MODEL
    IVCL(CFG).save_pretrained(run / "pretrain" / "pretrain")  # a folder of a model is that model
    assert weights_file(run / "pretrain") == run / "pretrain" / MODEL
    backbone.check_source(str(run))
    loaded = classifier.load_pretrained(str(run))
    ours, theirs = classifier.state_dict(), pretrained.state_dict()
    assert loaded and all(torch.equal(ours[key], theirs[key]) for key in loaded)


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"num_heads": 2}, "num_heads is 4 there, but 2 in this model; build the model with the"),
        ({"depth": 3}, "encoder.blocks.2.attn.proj.bias is only in this model"),
        ({"temporal_depth": 3}, "temporal.blocks.2.attn.proj.bias is only in this model"),
    ],
)
def test_weights_whose_shapes_alone_fit_are_refused(run, sizes, reason):
    other = IVCLClassifier(IVCLConfig.preset("tiny", **SIZES | sizes), 5)
    assert told(other.load_pretrained, "runs/RUN").startswith(f"runs/RUN: {reason}")
    if "num_heads" not in sizes:  # which no shape depends on
        alone = IVCL.from_pretrained("runs/RUN").state_dict()
        assert told(other.load_pretrained, alone).startswith(f"state dict: {reason}")


def test_weights_of_a_joint_encoder_are_refused_by_a_factorised_one(run):
    joint = IVCL(IVCLConfig.preset("tiny", **SIZES, objective="joint"))
    joint.save_pretrained("joint")
    message = told(IVCLClassifier(CFG, 5).load_pretrained, "joint")
    assert message.startswith("joint: encoder.time_embed is only there; ")
    assert "objective joint" in message
    IVCLClassifier(joint.cfg, 5).load_pretrained("joint")


def test_weights_that_are_not_floating_point_are_refused(tmp_path):
    IVCL(CFG).save_pretrained(tmp_path)
    weights = load_file(tmp_path / MODEL)
    weights |= {key: value.to(torch.int8) for key, value in weights.items() if "norm" in key}
    save_file(weights, tmp_path / MODEL)
    (tmp_path / CHECKSUMS).unlink()
    with pytest.raises(UserError, match=r"is torch\.int8 there, but a model has floating"):
        IVCL.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is torch\.int8 there, but a model has floating"):
        IVCLClassifier(CFG, 5).load_pretrained(tmp_path)


def test_a_checkpoint_of_torch_save_is_refused(tmp_path):
    torch.save(IVCL(CFG).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: not a readable safetensors file [^\n]*$"):
        IVCLClassifier(CFG, 3).load_pretrained(str(tmp_path / "a.pth"))


def test_damage_of_a_finished_model_is_found(tmp_path):
    model = IVCL(CFG)
    model.save_pretrained(tmp_path)
    flip_a_bit(tmp_path / MODEL)
    for load in (read_weights, IVCL.from_pretrained):
        with pytest.raises(UserError, match=r"model\.safetensors: damaged, "):
            load(tmp_path)
    model.save_pretrained(tmp_path)
    read_weights(tmp_path)


def test_mistakes_are_one_line_that_names_the_place(run, monkeypatch):
    (run / "pretrain" / MODEL).unlink()
    classifier = IVCLClassifier(CFG, 5)
    message = told(classifier.load_pretrained, "runs/RUN")
    assert message.startswith("runs/RUN: ") and "runs/RUN/scratch" in message
    for place in ("./typo", "runs/typo", "runs", f"runs/RUN/finetune/{MODEL}"):
        assert told(IVCLClassifier.from_pretrained, place).startswith(f"{place}: expected ")
    message = told(IVCLClassifier.from_pretrained, "OWNER/typo", local_files_only=True)
    assert message.startswith("OWNER/typo: ")
    message = told(IVCL.from_pretrained, "runs/RUN/scratch")
    assert "IVCLClassifier.from_pretrained('runs/RUN/scratch')" in message


def test_a_config_that_does_not_fit_is_one_line(tmp_path):
    IVCL(CFG).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"cfg": config["cfg"] | {"embed_dim": 64}}))
    assert "config.json: damaged" in told(IVCL.from_pretrained, tmp_path)
    (tmp_path / CHECKSUMS).unlink()
    assert "decoder.embed.weight" in told(IVCL.from_pretrained, tmp_path)
    unknown = json.dumps(config | {"cfg": config["cfg"] | {"colour": "red"}})
    for text in (unknown, "{}", "[1]", "{"):
        file.write_text(text)
        assert "config.json: " in told(IVCL.from_pretrained, tmp_path)
