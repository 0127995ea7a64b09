"""The three synthetic data sets, each written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.something_else.write import SyntheticSomethingElse
from ivcl_fast.data.synthetic.writer import write_dataset

SPECS = {
    "cater": SyntheticCater(train=5, val=3, seed=7),
    "acre": SyntheticAcre(regime="comp", train=4, val=1, test=3, seed=7),
    "something-else": SyntheticSomethingElse(train=20, val=18, seed=7),
}


def _written(name: str):
    @pytest.fixture(scope="session", name=name.replace("-", "_"))
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_dataset(tmp_path_factory.mktemp(name) / "made", SPECS[name], workers=1)

    return folder


cater, acre, something_else = map(_written, SPECS)
