"""``python -m tests.support.imposters``: accelerate every imposter, and as many equal modules.

It prints the counts, and each imposter that was accepted and each equal module that was refused.
The exit status is 1 if there was one. It takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

import torch

from ivcl_fast.command import run_command
from ivcl_fast.models.accelerate import crossovers
from tests.support.imposters.check import compare
from tests.support.imposters.generate import FAMILIES, Candidate, equals, imposters


def count(title: str, candidates: Iterable[Candidate], refusals_count: bool) -> int:
    """Compare all candidates, print what goes wrong and a line with the counts.

    Returns the number of candidates that went wrong.
    """
    counts: Counter[str] = Counter()
    for candidate in candidates:
        outcome = compare(candidate)
        counts["all"] += 1
        counts["replaced"] += "" in outcome.replaced
        counts["different"] += outcome.difference is not None
        if outcome.difference is not None:
            counts["wrong"] += 1
            print(f"{candidate}: {outcome.difference}", flush=True)
        elif refusals_count and "" not in outcome.replaced:
            counts["wrong"] += 1
            print(f"{candidate}: refused, {outcome.kept.get('', 'not known')}", flush=True)
    print(
        f"{title}: {counts['all']} modules, {counts['replaced']} replaced, "
        f"{counts['different']} compute something else afterwards",
        flush=True,
    )
    return counts["wrong"]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("python -m tests.support.imposters", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how often everything is drawn anew")
    parser.add_argument("--equal", type=int, default=512, help="number of equal modules per seed")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    # What is tried is what is equal, not what is faster, which differs between machines.
    crossovers.LIMITS |= dict.fromkeys(crossovers.LIMITS, (crossovers.ANY, crossovers.ANY))
    crossovers.LEAST = {}
    begin, wrong = time.monotonic(), 0
    families = tuple(family for known in FAMILIES.values() for family in known)
    for seed in range(flags.seeds):
        wrong += count("imposters", imposters(seed), refusals_count=False)
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            half = equals(families, flags.equal // 2, seed)
            wrong += count(f"equal modules, products {precision}", half, refusals_count=True)
        torch.set_float32_matmul_precision("highest")
    print(f"{wrong} wrong, {time.monotonic() - begin:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run_command(main)
