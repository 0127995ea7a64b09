"""Clips as the models of a run are given them, read from their media."""

from __future__ import annotations

from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre
from ivcl_fast.training.arguments import parse


def test_a_model_of_a_single_panel_is_given_the_query(tmp_path):
    write_acre(tmp_path / "acre", SyntheticAcre("iid", train=1, val=1, test=1), 1)
    for frames, chosen in ((7, [0, 1, 2, 3, 4, 5, 9]), (1, [9])):
        config = parse(["--data", f"acre:{tmp_path / 'acre'}", "--num-frames", str(frames)])
        clip = ClipReader(FinishedRun(config)).read(FinishedRun(config).dataset.clips("test")[3])
        assert clip.frame_index == chosen and len(clip.frames) == frames
        assert clip.titles[-1] == "query"
