"""The classes that a run keeps, against those of data sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ivcl_fast.data.frame_labels import CLASSES
from ivcl_fast.errors import UserError
from ivcl_fast.training.classes import Classes, pretraining_model
from tests.support.small_models import config


def dataset(*names: str, multi_label: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        num_classes=len(names), describe=names.__getitem__, multi_label=multi_label
    )


def test_classes_are_kept_and_others_are_refused(tmp_path):
    classes = Classes.of(dataset("ant", "bee"))
    classes.write(tmp_path)
    assert Classes.read(tmp_path) == classes == Classes(False, ["ant", "bee"])
    classes.check_same("x", dataset("ant", "bee"))
    for other in (dataset("ant"), dataset("bee", "ant"), dataset("ant", "bee", multi_label=True)):
        with pytest.raises(UserError, match="--data: expected the run's 2 classes"):
            classes.check_same("x", other)


@pytest.mark.parametrize("objective", CLASSES)
def test_supervised_pretraining_has_the_classes_of_its_labels(objective):
    model = pretraining_model(config(objective=objective))
    assert model.num_classes == len(CLASSES[objective])
