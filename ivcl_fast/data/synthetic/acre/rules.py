"""ACRE's problems: trials with a machine, and what they say about it.

Some objects, the *causes*, switch the machine on; it is off where there is none. A problem shows
six trials. The first three introduce one cause and one object that is none: the cause alone (on),
the other alone (off), both (on). The second three are about further objects: *three-lit* problems
have two trials with the machine off, which clear objects between them, and one with it on;
*four-lit* problems have one with it off and two with it on. Objects already cleared also stand in
the trials that light up. The process and its numbers are those that ACRE was generated with.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ivcl_fast.data.formats.acre import (
    CONTEXT,
    OFF,
    ON,
    QUERIES,
    TYPES,
    UNDETERMINED,
    Panel,
    Problem,
    QuestionType,
    Regime,
    object_table,
)

Objects = tuple[int, ...]

# How many objects may be causes, and how many are none.
_THREE_LIT = ((2, 3), (3, 5))
_FOUR_LIT = ((2, 4), (3, 4))


def draw_problem(regime: Regime, split: str, seed: int, number: int) -> Problem:
    """One problem: a function of the arguments alone.

    ``sys`` trains on three-lit problems and is tested on four-lit ones; elsewhere they alternate.
    """
    rng = random.Random(f"{seed} {regime} {split} {number}")
    four_lit = split != "train" if regime == "sys" else number % 2 == 1
    suspects_range, innocents_range = _FOUR_LIT if four_lit else _THREE_LIT
    suspects, innocents = rng.randint(*suspects_range), rng.randint(*innocents_range)
    drawn = rng.sample(range(len(object_table(regime, split))), suspects + innocents)
    first_cause, *suspected = drawn[:suspects]
    first_innocent, *cleared = drawn[suspects:]

    habituation = [
        Panel((first_cause,), "on"),
        Panel((first_innocent,), "off"),
        Panel((first_cause, first_innocent), "on"),
    ]
    if four_lit:
        lit, unlit = _cover(rng, suspected), [tuple(cleared)]
    else:
        lit, unlit = [tuple(suspected)], _cover(rng, cleared)
    evidence = [Panel(objects, "off") for objects in unlit]
    for objects in lit:
        bystanders = rng.sample(cleared, rng.randint(0, len(cleared)))
        evidence.append(Panel((*objects, *bystanders), "on"))
    rng.shuffle(habituation)
    rng.shuffle(evidence)
    context = (*habituation, *evidence)

    found = find(context)
    return (
        *context,
        *_independent(rng, found, regime, split),
        *_interventions(rng, found, context),
    )


def _cover(rng: random.Random, objects: Sequence[int]) -> list[Objects]:
    """Two groups that hold all objects between them, possibly some in both; none is empty."""
    first = rng.sample(objects, rng.randint(1, len(objects)))
    rest = [o for o in objects if o not in first]
    again = rng.sample(first, rng.randint(0 if rest else 1, len(first)))
    return [tuple(first), (*rest, *again)]


# --- What the trials say -------------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What six trials establish."""

    objects: dict[QuestionType, list[int]]
    """Every object shown, by how its part is known:

    ``direct``: it was alone in a trial that lit up, or only ever in trials that did not;
    ``indirect``: it lit a trial up of which all else is cleared; ``screen_off``: it is cleared,
    though seen in trials that lit up; ``potential``: it may be a cause or not.
    """
    causes: frozenset[int]
    joint: list[Objects]
    """Smallest groups of ``potential`` objects of which at least one must be a cause."""

    def label(self, added: int) -> int:
        """The answer about an object alone, or added to objects that are cleared."""
        if added in self.causes:
            return ON
        return UNDETERMINED if added in self.objects["potential"] else OFF


def find(context: Sequence[Panel]) -> Findings:
    """What the trials of a problem establish; exact, as a trial lights up iff it holds a cause."""
    lit = [panel.objects for panel in context if panel.light == "on"]
    cleared = {o for panel in context if panel.light == "off" for o in panel.objects}
    ever_lit = {o for objects in lit for o in objects}
    suspects = [frozenset(objects) - cleared for objects in lit]
    causes = frozenset(o for group in suspects if len(group) == 1 for o in group)
    alone = {objects[0] for objects in lit if len(objects) == 1}
    unexplained = {group for group in suspects if not group & causes}
    kinds: dict[QuestionType, set[int]] = {
        "direct": alone | (cleared - ever_lit),
        "indirect": set(causes - alone),
        "screen_off": cleared & ever_lit,
        "potential": ever_lit - cleared - causes,
    }
    return Findings(
        {kind: sorted(kinds[kind]) for kind in TYPES},
        causes,
        sorted(tuple(sorted(g)) for g in unexplained if not any(h < g for h in unexplained)),
    )


# --- Queries -------------------------------------------------------------------------------------


def _independent(rng: random.Random, found: Findings, regime: Regime, split: str) -> list[Panel]:
    """Two questions about single objects; one of them about a ``potential`` one if there is any."""
    screened = len(found.objects["screen_off"])
    # ACRE keeps some screened-off objects from being asked about, to balance its question types.
    kept_back = {"iid": 1, "comp": 2, "sys": 3 if split == "train" else 1}[regime]
    potential = min(len(found.objects["potential"]), 1)
    while True:
        rest = 2 - potential
        direct = rng.randint(0, min(len(found.objects["direct"]), rest))
        indirect = rng.randint(0, min(len(found.objects["indirect"]), rest - direct))
        screen_off = rest - direct - indirect
        if screen_off <= max(screened - kept_back, 0):
            break
    queries = [
        Panel((o,), "no", found.label(o), kind)
        for kind, count in zip(TYPES, (direct, indirect, screen_off, potential), strict=True)
        for o in rng.sample(found.objects[kind], count)
    ]
    rng.shuffle(queries)
    return queries


def _interventions(rng: random.Random, found: Findings, context: Sequence[Panel]) -> list[Panel]:
    """Two questions about a trial that stayed off, with something added to it."""
    ref = rng.choice([i for i, panel in enumerate(context) if panel.light == "off"])
    there = context[ref].objects
    choices: list[tuple[QuestionType, Objects, int]] = [
        (kind, (o,), found.label(o))
        # Twice the potential ones, so that the same may be asked about twice, as in ACRE.
        for kind in (*TYPES, "potential")
        for o in found.objects[kind]
        if o not in there
    ]
    choices += [("indirect", group, ON) for group in found.joint]
    return [
        Panel((*there, *added), "no", label, kind, ref)
        for kind, added, label in rng.sample(choices, 2)
    ]


def solve(problem: Problem) -> list[int]:
    """The four right answers, from all the ways in which the objects can be causes or not.

    Of the ``2^n`` assignments of the n objects shown, keep those under which every trial comes out
    as seen; a query's answer is theirs if they agree, else undetermined.
    """
    bit = {o: 1 << k for k, o in enumerate(sorted({o for p in problem for o in p.objects}))}

    def holds_cause(worlds: np.ndarray, objects: Iterable[int]) -> np.ndarray:
        return (worlds & sum(bit[o] for o in set(objects))) != 0

    worlds = np.arange(1 << len(bit))
    for i in CONTEXT:
        worlds = worlds[holds_cause(worlds, problem[i].objects) == (problem[i].light == "on")]
    answers = []
    for i in QUERIES:
        on = holds_cause(worlds, problem[i].objects)
        answers.append(ON if on.all() else UNDETERMINED if on.any() else OFF)
    return answers
