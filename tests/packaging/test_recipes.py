"""The recipes' tables are what is predicted now, and their batches fit the cards they name."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from docs import recipe_tables
from docs.markers import written_anew
from ivcl_fast.data.store import placement
from ivcl_fast.data.store.placement import choose_placement
from ivcl_fast.report.plan import USABLE
from ivcl_fast.training.arguments import parse
from tests.packaging.test_docs import blocks

PAGES = [path for path in recipe_tables.PAGES if "<!-- plan: " in path.read_text()]
COMMAND = re.compile(r"^# (.+) cards? of (24|80) GB\n((?:.*\\\n)*.*)$", re.MULTILINE)


def planned(text: str) -> dict[tuple[str, str], list[str]]:
    """The rows of a page's plan: cells by preset and stage."""
    rows = re.findall(r"^\| (\w+) \| (pretrain|finetune) \| (.*) \|$", text, re.MULTILINE)
    return {(preset, stage): cells.split(" | ") for preset, stage, cells in rows}


def test_table_of_presets_is_what_they_are():
    (page,) = (path for path in recipe_tables.PAGES if "<!-- presets -->" in path.read_text())
    text = page.read_text()
    assert written_anew(text, recipe_tables.KINDS) == text
    assert [*recipe_tables.PRESETS] == re.findall(r"^\| `(\w+)` \| \d", text, re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_what_is_predicted_now(path, monkeypatch):
    """Of the plan, the smallest preset is predicted again; the others take too long."""
    text = path.read_text()
    rows = planned(text)
    assert [preset for preset, stage in rows if stage == "finetune"] == [*recipe_tables.PRESETS]
    (flags,) = re.findall(r"<!-- plan: (.*) -->", text)
    made = recipe_tables.plan_rows("tiny", flags)
    assert made == [["tiny", stage, *rows["tiny", stage]] for stage in ("pretrain", "finetune")]
    kept = {name: [name[0], name[1], *cells] for name, cells in rows.items()}
    monkeypatch.setattr(
        recipe_tables, "plan_rows",
        lambda preset, _: [kept[preset, stage] for stage in ("pretrain", "finetune")],
    )  # fmt: skip
    assert written_anew(text, recipe_tables.KINDS) == text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_batches_fit_the_cards(path, monkeypatch):
    """Together with the frame store, where --placement auto puts it on the card."""
    text = path.read_text()
    rows = planned(text)
    ((videos, frames),) = re.findall(r"<!-- store: (\d+) (\d+) ", text)
    monkeypatch.setattr(placement, "available_memory", lambda: 10**15)
    found = COMMAND.findall("".join(blocks(text, "console")))
    assert [(count, card) for count, card, _ in found] == [
        ("one", "24"), ("one", "80"), ("eight", "80"),
    ]  # fmt: skip
    for count, card, command in found:
        ranks = {"one": 1, "eight": 8}[count]
        words = shlex.split(command.replace("\\\n", " "))
        assert ("--nproc-per-node=8" in words) == (ranks == 8)
        config = parse(words[words.index("ivcl_fast.train") + 1 :])
        clips = config.optim.batch_size / ranks / config.optim.grad_accum_steps
        assert clips == int(clips)
        column, usable = {"24": 2, "80": 3}[card], USABLE * int(card) * 1e9
        peaks = []
        for stage in ("pretrain", "finetune"):
            cells = rows[config.preset, stage]
            most, fixed = int(cells[column].replace(",", "")), float(cells[0]) * 1e9
            assert clips <= most
            peaks.append(fixed + clips * (usable - fixed) / most)
        peak, store = int(max(peaks)), 3 * config.model.image_size**2 * int(videos) * int(frames)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, card=card: (int(card) * 10**9, 0))
        place, _ = choose_placement("auto", store, torch.device("cuda"), lambda peak=peak: peak)
        assert peak + (store if place == "gpu" else 0) <= usable
