"""The benchmarks that pytest runs; the modules named here define them."""

from __future__ import annotations

import pytest

from benchmarks import data, ops, steps
from benchmarks.conftest import cases
from benchmarks.timing import DEVICE


@cases(ops.BENCHMARKS)
def test_op(case, implementation, replay, run_case):
    run_case(case, implementation, replay)


@cases(steps.BENCHMARKS)
def test_step(case, implementation, replay, run_case):
    run_case(case, implementation, replay)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="make gpu-check measures the data of a GPU")
@cases(data.BENCHMARKS)
def test_data(case, implementation, replay, run_case):
    run_case(case, implementation, replay)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``test_mae`` its cases, which depend on a flag."""
    if metafunc.function is test_mae:
        folder = metafunc.config.getoption("--mae")
        if folder is None:
            skip = pytest.mark.skip(reason="needs --mae FOLDER")
            none = pytest.param(None, None, None, marks=skip)
            metafunc.parametrize("case, implementation, replay", [none])
        else:
            from benchmarks.public_mae import mae_benchmark

            mark = cases([mae_benchmark(folder)])
            metafunc.parametrize(*mark.args)


def test_mae(case, implementation, replay, run_case):
    run_case(case, implementation, replay)
