"""A simulator of faults: commands that are killed, stopped, starved and raced until they end well.

``python -m tests.support.faults --schedules 500`` runs schedules of seeds 0 to 499, and
``--seed N --schedules 1`` replays one of them. Each schedule sets a folder up, then starts a
command some times with faults of the system (``system.c``) or with a changed byte, and at last
without. ``checks.py`` says what has to hold.
"""
