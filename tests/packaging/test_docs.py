"""The snippets of README.md, CONTRIBUTING.md and docs/: commands are parsed, Python code is run.

A command runs up to its parser of flags, and names that it looks up later are looked up. ``info``
and commands that read a finished run are run. ``make`` lists what it would do, and scripts for
Slurm are commands of this package. Not run: ``pip`` and ``pytest``. Python code runs as it stands,
on a short run and its data. Other blocks, such as file listings, have no language or ``toml``.
"""

from __future__ import annotations

import argparse
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image

from ivcl_fast import IVCLConfig, SlotAutoencoder
from ivcl_fast.data import registry as catalog
from ivcl_fast.errors import UserError
from ivcl_fast.report import plan
from ivcl_fast.studies.runner import check_flags, chosen_study
from ivcl_fast.training import arguments as arguments_of_train
from ivcl_fast.training.arguments import parse as parse_flags
from ivcl_fast.training.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"console", "python", "toml", ""}
WIDTH = 78
"""Columns of a code block that the documentation site shows without wrapping, and one more."""
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
END_AT_ONCE = {"ivcl_fast.info"}
READ_RUNS = re.compile(r"python -m ivcl_fast\.(compare|evaluate|visualize) (?!.*(data|masks|gif))")
"""Commands on finished runs that take seconds."""


class Parsed(Exception):
    """A command's flags were parsed; it goes no further."""

    def __init__(self, found: Any) -> None:
        self.found = found


# --- What is written ------------------------------------------------------------------------------


def blocks(text: str, language: str) -> list[str]:
    return [body for of, body in FENCED.findall(text) if of == language]


def commands(text: str) -> list[str]:
    """Commands of console blocks and of sentences."""
    lines = "".join(blocks(text, "console")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:make|python|torchrun) [^`]+)`", FENCED.sub("", text))
    return [line for line in lines if shlex.split(line, comments=True)]


# --- Whether it can be typed ----------------------------------------------------------------------


def check(command: str) -> None:
    """Raise an error for a program, target, module, flag or name that does not exist."""
    words = shlex.split(command, comments=True)
    program, *arguments = itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)
    checks = {
        "python": check_python, "torchrun": check_torchrun, "make": check_make,
        "sbatch": check_sbatch,
    }  # fmt: skip
    try:
        if program in checks:
            checks[program](arguments)
        else:
            assert program in ("pip", "pytest"), program
    except SystemExit as stop:
        assert not stop.code


def check_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(arguments)
    check_python(["-m" if asked.module else "", asked.training_script, *asked.training_script_args])


def check_make(arguments: list[str]) -> None:
    subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
    target, *variables = arguments
    if target == "train":
        flags = [value.removeprefix("ARGS=") for value in variables]
        check_python(["-m", "ivcl_fast.train", *shlex.split(" ".join(flags))])


def check_sbatch(arguments: list[str]) -> None:
    """``sbatch [options] SCRIPT ARGUMENTS``, which are those of the command in the script."""
    (script,) = (a for a in arguments if a.endswith(".sbatch"))
    assert (ROOT / script).is_file()
    command = "ivcl_fast." + Path(script).stem
    check_python(["-m", command, *arguments[arguments.index(script) + 1 :]])


def check_python(arguments: list[str]) -> None:
    if arguments[0].startswith("examples/") and (ROOT / arguments[0]).is_file():
        return  # tests/examples runs it
    if arguments[0] != "-m" or find_spec(arguments[1]) is None:
        raise UserError(f"no module {arguments[-1]}")
    module, flags = arguments[1], arguments[2:]
    if module in END_AT_ONCE:
        run(module, flags)
        return
    if module == "ivcl_fast.train":
        with pytest.MonkeyPatch.context() as patch:  # of a run that is not there
            patch.setattr(arguments_of_train, "read_settings", lambda *_, **place: TrainConfig())
            parse_flags(flags)
        return
    found = parsed(module, flags)
    if module == "ivcl_fast.prepare":
        catalog.parse_source(found.source.replace("synthetic:cater", "synthetic"))
    if module == "ivcl_fast.sweep":
        found, flags = found
        parse_flags(flags)
        check_flags(*chosen_study(found), tuple(flags))


def run(module: str, flags: list[str]) -> None:
    """``python -m module flags``, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "show", lambda *args: None)  # its flags matter, and it takes a minute
        patch.setattr(sys, "argv", [module, *flags])
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def parsed(module: str, flags: list[str]) -> Any:
    """What a command's parser makes of its flags."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((tyro, "cli"), (argparse.ArgumentParser, "parse_args")):
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        try:
            run(module, flags)
        except Parsed as stop:
            return stop.found
    raise UserError(f"{module} takes no flags")


def stopping(parse: Any) -> Any:
    def parse_and_stop(*arguments: Any, **options: Any) -> None:
        raise Parsed(parse(*arguments, **options))

    return parse_and_stop


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=f"{file.name}: {command.partition('  ')[0]}")
        for file in FILES
        for command in dict.fromkeys(commands(file.read_text()))
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_commands_can_be_typed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(command)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_blocks_of_code_have_a_known_language_and_fit_the_page(file):
    for language, body in FENCED.findall(file.read_text()):
        assert language in LANGUAGES
        assert max(map(len, body.splitlines())) < WIDTH


# --- Code -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_files(short_run, tmp_path_factory) -> Path:
    """A folder with what the pages' code names: a video, runs, and published data."""
    folder = tmp_path_factory.mktemp("own")
    named = {*re.findall(r"runs/([\w-]+)", " ".join(OF_RUNS))} - {"objects"}
    for name in {"synthetic-localize-tiny", *named}:
        shutil.copytree(short_run.folder, folder / "runs" / name)
    (data,) = short_run.home.glob("data/*")
    for name, target in {
        "video.avi": short_run.video, "VIDEO": short_run.video, "DIR": short_run.video.parent,
        "all_actions": data, "data": data.parent,
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    objects = IVCLConfig(objective="slot_attention", embed_dim=16, depth=1, num_frames=4,
                         num_query_frames=2)  # fmt: skip
    SlotAutoencoder(objects).save_pretrained(folder / "runs" / "objects")
    (strips := folder / "mocogan" / "data" / "actions" / "4").mkdir(parents=True)
    Image.new("RGB", (256, 64)).save(strips / "00000006.jpg")
    return folder


# One of several that differ in the name of a run alone.
OF_RUNS = {
    re.sub(r"runs/(?!objects)[\w-]+", "runs/RUN", command): command
    for file in FILES
    for line in commands(file.read_text())
    if READ_RUNS.match(command := shlex.join(shlex.split(line, comments=True)))
}.values()


@pytest.mark.parametrize("command", OF_RUNS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_commands_on_a_finished_run(command, own_files, monkeypatch):
    monkeypatch.chdir(own_files)
    _, _, module, *flags = shlex.split(command)
    with pytest.raises(SystemExit) as stop:
        run(module, flags)
    assert not stop.value.code


PAGES = [file for file in FILES[1:] if blocks(file.read_text(), "python")]  # README has its own


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_the_pages_python_runs(file, own_files, monkeypatch):
    monkeypatch.chdir(own_files)
    for code in blocks(file.read_text(), "python"):
        if "import timm" in code:
            pytest.importorskip("timm")
        exec(compile(code, file.name, "exec"), {})


def test_the_readme_s_python_runs_in_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (code,) = blocks((ROOT / "README.md").read_text(), "python")
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 36)
    assert capsys.readouterr().out.strip() == "cell 27 (column 3, row 4)", "where the snitch is"
