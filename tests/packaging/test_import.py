"""``import ivcl_fast`` asks nothing of the machine: no GPU, no Triton, no install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import ivcl_fast

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *paths: Path, isolated: bool = False) -> subprocess.CompletedProcess:
    """A fresh interpreter in another folder; ``isolated`` from the editable install as well."""
    packages = [sysconfig.get_path("purelib")] if isolated else []
    path = os.pathsep.join([*map(str, paths), str(ROOT), *packages])
    return subprocess.run(
        [sys.executable, *(["-S"] if isolated else []), "-c", code], cwd="/",
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip


NO_DEVICES = """
import torch
def refuse(*args, **kwargs):
    raise AssertionError("a device was asked for at import")
for name in ("is_available", "device_count", "init", "current_device", "get_device_properties",
             "get_device_capability"):
    setattr(torch.cuda, name, refuse)
import sys
"""


def test_import_is_silent_and_touches_no_device():
    done = run(
        NO_DEVICES + "import ivcl_fast, ivcl_fast.kernels\n"
        "assert callable(ivcl_fast.accelerate) and callable(ivcl_fast.restore)\n"
        "ivcl_fast.IVCL, ivcl_fast.load_clip, ivcl_fast.supervised.Supervised\n"
        "assert 'kernels' not in sys.modules\n"
        "assert not torch.cuda.is_initialized()\n"
        "for heavy in ('torch._dynamo', 'nvidia.dali', 'timm', 'flash_attn', 'xformers', 'av'):\n"
        "    assert heavy not in sys.modules, heavy\n"
        "import ivcl_fast.train\n"  # which needs some of them, but not all
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BLOCKED = (
    "rich", "tyro", "tensorboard", "av", "huggingface_hub", "einops", "PIL", "safetensors", "timm",
)  # fmt: skip


def test_the_kernels_need_only_torch_numpy_and_triton():
    done = run(
        f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))\n"
        "import torch, ivcl_fast, ivcl_fast.kernels, ivcl_fast.kernels.attention\n"
        "cfg = ivcl_fast.IVCLConfig.preset('tiny')\n"
        "ids, _ = ivcl_fast.kernels.sample_masks(torch.zeros(2, dtype=torch.int64), 64, 16)\n"
        "assert ids.shape == (2, cfg.num_keep) and ivcl_fast.__version__\n"
        "ours = {name for name in sys.modules if name.startswith('ivcl_fast.')}\n"
        "others = {name for name in ours if not name.startswith('ivcl_fast.kernels')}\n"
        "assert others <= {'ivcl_fast.config', 'ivcl_fast.errors', 'ivcl_fast.text'}, others\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_public_names_are_those_that_the_guide_lists(monkeypatch):
    listed = set(re.findall(r"^\* (\w+): ", ivcl_fast.__doc__, re.MULTILINE))
    public = {*ivcl_fast._HOMES}
    assert listed == public - {"Report"}  # what accelerate returns
    assert public == {name for name in dir(ivcl_fast) if not name.startswith("_")}
    for name in public:
        assert getattr(ivcl_fast, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'ivcl_fast' has no attribute 'IVLC'"):
        ivcl_fast.IVLC  # noqa: B018
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ivcl_fast.__version__ == version
    monkeypatch.setattr(metadata, "version", lambda name: "of another copy that is installed")
    monkeypatch.delattr(ivcl_fast, "__version__")
    assert ivcl_fast.__version__ == version


def test_a_bare_checkout_needs_no_install():
    """And its models import only the packages below them."""
    done = run(
        "import sys, ivcl_fast\n"
        "ivcl_fast.accelerate, ivcl_fast.slot_autoencoder, ivcl_fast.supervised\n"
        "found = {name.split('.')[1] for name in sys.modules if name.startswith('ivcl_fast.')}\n"
        "assert found == {'config', 'errors', 'files', 'text', 'kernels', 'models'}, found\n"
        "assert 'kernels' not in sys.modules\n"
        f"assert ivcl_fast.kernels.__file__ == {str(ROOT / 'kernels' / '__init__.py')!r}\n",
        isolated=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_installed_copy_is_no_checkout(tmp_path):
    """Hugging Face's package is called ``kernels``, and some packages install a ``setup.py``."""
    for name in ("ivcl_fast/kernels/__init__.py", "kernels/__init__.py", "setup.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "ivcl_fast" / "__init__.py", tmp_path / "ivcl_fast")
    done = run("import ivcl_fast; print(*ivcl_fast.__path__)", tmp_path)
    assert done.stdout.split() == [str(tmp_path / "ivcl_fast")], done.stderr


def test_a_checkout_does_not_hide_hugging_faces_kernels(tmp_path):
    """transformers and setuptools import that package, also with a checkout first on sys.path."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("from .theirs import NAME\n")
    (tmp_path / "kernels" / "theirs.py").write_text("NAME = 'theirs'\n")
    done = run(
        "import kernels, ivcl_fast.kernels as ours; print(kernels.NAME, ours.__name__)",
        ROOT,
        tmp_path,
    )
    assert done.stdout.split() == ["theirs", "ivcl_fast.kernels"], done.stderr


def test_broken_packages_are_survived_and_named(tmp_path):
    for name in ("triton", "flash_attn", "xformers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('{name} is broken')\n")
    done = run(NO_DEVICES + "import ivcl_fast.kernels, ivcl_fast\nivcl_fast.IVCL\n", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("from ivcl_fast.info import show; show()\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "triton is broken" in done.stdout
    assert "xformers is broken" in done.stdout
