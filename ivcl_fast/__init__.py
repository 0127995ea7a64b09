"""IV-CL: self-supervised video pretraining with slot tokens, on fused kernels.

A model compresses every frame of a video into a few slot tokens, exchanges them over time, and
learns without labels by reconstructing masked patches; then it is finetuned to answer a question
about the video. ``python -m ivcl_fast.train`` does both. From a video file to an answer::

    import ivcl_fast

    model = ivcl_fast.IVCLClassifier.from_pretrained("runs/RUN")
    video = ivcl_fast.load_clip("video.avi", model.cfg)  # uint8 [1, T, 3, H, W]
    logits = model(video)  # [1, num_classes]
    print(model.class_names[logits.argmax()])

* IVCLConfig: sizes and options of a model; IVCLConfig.preset("tiny") and other presets
* IVCL: the pretraining model: loss, reconstruct(video), encode(video)
* IVCLClassifier: the finetuned model: logits of a video
* SlotAutoencoder: the pretraining model whose slots hold one object each, without labels
* Supervised: the pretraining model of the supervised baselines
* reference: the same models in plain PyTorch: reference.IVCL, reference.IVCLClassifier
* slot_autoencoder: slot attention in plain PyTorch: slot_autoencoder.SlotAutoencoder
* supervised: the supervised baseline in plain PyTorch: supervised.Supervised
* accelerate: swap fused kernels into an existing model, in place; returns a Report
* restore: undo accelerate
* load_clip: read a video file or images as a model's input
* show: play a video in a notebook, with a model's attention and answer
* nn: layers on the fused operations, for models of your own: nn.Block and others
* kernels: the fused operations by themselves

Save and load models with save_pretrained and from_pretrained. help(ivcl_fast.IVCL), for example,
lists shapes, dtypes and errors. The commands are python -m ivcl_fast.train, evaluate, prepare,
visualize, probes, compare, sweep, export and info, each with --help. Importing this package imports
none of them and touches no device.
"""

import signal
import sys
import typing
from importlib import import_module
from pathlib import Path

# The kernels are at the top level of a checkout but inside an installed package. This makes
# ``import ivcl_fast.kernels`` work in both. A ``kernels`` package next to an installed copy may be
# unrelated, such as Hugging Face's.
_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
_IN_CHECKOUT = not (_HERE / "kernels").is_dir() and all(
    (_ROOT / name).is_file() for name in ("setup.py", "kernels/__init__.py")
)
if _IN_CHECKOUT:
    __path__.append(str(_ROOT))

# Each name is imported when it is first used, so that ``import ivcl_fast.kernels`` needs no more
# than the kernels do. There is no ``__all__``: with one, help() would print every class in full.
_HOMES = {
    "IVCL": "ivcl_fast.models.ivcl",
    "IVCLClassifier": "ivcl_fast.models.ivcl",
    "IVCLConfig": "ivcl_fast.config",
    "Report": "ivcl_fast.models.accelerate",
    "SlotAutoencoder": "ivcl_fast.models.ivcl",
    "Supervised": "ivcl_fast.models.ivcl",
    "accelerate": "ivcl_fast.models.accelerate",
    "kernels": "ivcl_fast.kernels",
    "load_clip": "ivcl_fast.data.clip",
    "nn": "ivcl_fast.nn",
    "reference": "ivcl_fast.models.reference",
    "restore": "ivcl_fast.models.accelerate",
    "show": "ivcl_fast.demo",
    "slot_autoencoder": "ivcl_fast.models.slot_autoencoder",
    "supervised": "ivcl_fast.models.supervised",
}

if typing.TYPE_CHECKING:
    from ivcl_fast import kernels as kernels
    from ivcl_fast import nn as nn
    from ivcl_fast.config import IVCLConfig as IVCLConfig
    from ivcl_fast.data.clip import load_clip as load_clip
    from ivcl_fast.demo import show as show
    from ivcl_fast.models import reference as reference
    from ivcl_fast.models import slot_autoencoder as slot_autoencoder
    from ivcl_fast.models import supervised as supervised
    from ivcl_fast.models.accelerate import Report as Report
    from ivcl_fast.models.accelerate import accelerate as accelerate
    from ivcl_fast.models.accelerate import restore as restore
    from ivcl_fast.models.ivcl import IVCL as IVCL
    from ivcl_fast.models.ivcl import IVCLClassifier as IVCLClassifier
    from ivcl_fast.models.ivcl import SlotAutoencoder as SlotAutoencoder
    from ivcl_fast.models.ivcl import Supervised as Supervised

    __version__ = ""
else:

    def __getattr__(name: str) -> typing.Any:
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            module = import_module(_HOMES[name])
            value = getattr(module, name, module)  # the module itself, or a name in it
        else:
            raise AttributeError(f"module 'ivcl_fast' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    special = {name for name in globals() if name.startswith("__")}
    return sorted({*special, *_HOMES, "__version__"})


def _version() -> str:
    """Return the version of this code: a checkout's own, even if another copy is installed."""
    if _IN_CHECKOUT:
        import tomllib

        return tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    from importlib.metadata import version

    return version("ivcl_fast")


# Ctrl-C ends a command without a traceback while its modules are imported, which takes seconds.
# While Python looks for the module of ``python -m ivcl_fast.train``, argv is ``["-m", ...]``.
if (
    getattr(sys, "argv", [])[:1] == ["-m"]
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
