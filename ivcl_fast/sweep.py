"""``python -m ivcl_fast.sweep STUDY``: run a study, which compares several variants in one table.

Examples:

  python -m ivcl_fast.sweep pretraining                  three seeds of every variant
  python -m ivcl_fast.sweep --vary num-slots=2,4,8       values of any flag of ivcl_fast.train
  python -m ivcl_fast.sweep --vary lr=1e-3,3e-3 --data videos:DIR

Every variant is pretrained once (see ``--pretrainings``) and finetuned with several seeds; all
other settings are equal. Flags of ``ivcl_fast.train``, such as ``--data`` and ``--preset``, apply
to every run. ``--quick`` runs every part once, with one seed. The same command continues a stopped
study. Each GPU trains one run at a time. On a CPU, ``--parallel N`` trains N runs at a time, which
is faster for small models.
"""

from __future__ import annotations

from ivcl_fast.command import parse, run_command
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import SweepConfig, run_study

QUESTIONS = "".join(f"\n  {name}: {study.question}" for name, study in STUDIES.items())


def main() -> None:
    config, flags = parse(
        SweepConfig, "sweep", __doc__ + "\n\nStudies:" + QUESTIONS, return_unknown_args=True
    )
    folder = run_study(config, tuple(flags))
    print(f"study: {folder / 'study.md'}")


if __name__ == "__main__":
    run_command(main, continues=True)
