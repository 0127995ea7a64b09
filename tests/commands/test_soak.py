"""A little of ``make soak``, and that it fails if a fault is not survived.

Kills and dead ranks are also in test_train.py and tests/distributed/test_faults.py.
"""

from __future__ import annotations

import pytest

from ivcl_fast.training import checkpoint
from tests.support import soak


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_found(tmp_path, seed):
    assert soak.damage(seed, tmp_path / "checkpoints") in ("flip", "cut", "remove")


def test_damage_that_is_not_found_is_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "check_checksums", lambda folder, names: None)
    with pytest.raises(SystemExit) as stop:
        soak.main(["--kills=0", "--deaths=0", "--damages=30"])
    *failures, header, row = capsys.readouterr().out.splitlines()
    number, failed, *_ = row.removeprefix("damaged checkpoint").split()
    assert stop.value.code == 1 and header == soak.HEADER and number == "30"
    assert 0 < int(failed) == len(failures)
