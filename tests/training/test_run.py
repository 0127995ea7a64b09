"""What a run knows of its machine and of the weights that it starts from."""

from __future__ import annotations

from ivcl_fast.analysis.finished_runs import origin
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.settings import write_settings


def test_a_report_names_the_initial_weights(tmp_path):
    place = ["--out", str(tmp_path.parent), "--name", tmp_path.name]
    mae = parse(["--objective", "mae", *place])
    write_settings(mae)
    for stage in ("pretrain", "scratch"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "model.safetensors").touch()
    assert origin(mae) == "image MAE"
    for init, said in (
        ("random", "from scratch"),
        (str(tmp_path / "pretrain"), "image MAE"),
        (str(tmp_path / "scratch"), f"from the model scratch of {tmp_path.name}"),
        (str(tmp_path / "elsewhere" / "model.safetensors"), "pretrained"),
        ("timm:vit_tiny_patch16_224", "pretrained: timm:vit_tiny_patch16_224"),
        (f"timm:{tmp_path}/vit.safetensors", "pretrained"),
    ):
        assert origin(parse(["--stage", "finetune", "--init", init])) == said
