"""The three synthetic data sets, each written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.data.synthetic.something_else.write import (
    SyntheticSomethingElse,
    write_something_else,
)

WRITERS = {
    "cater": (write_cater, SyntheticCater(train=5, val=3, seed=7)),
    "acre": (write_acre, SyntheticAcre(regime="comp", train=4, val=1, test=3, seed=7)),
    "something-else": (write_something_else, SyntheticSomethingElse(train=20, val=18, seed=7)),
}


def _written(name: str):
    @pytest.fixture(scope="session", name=name.replace("-", "_"))
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        write, spec = WRITERS[name]
        return write(tmp_path_factory.mktemp(name) / "made", spec, workers=1)

    return folder


cater, acre, something_else = map(_written, WRITERS)
