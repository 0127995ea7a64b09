"""A simulator of faults: commands that are killed, stopped, starved and raced until they end well.

``python -m tests.support.faults --schedules 500`` runs schedules of seeds 0 to 499, and
``--seeds evaluate:17`` one of them. Each schedule sets a folder up, then starts a command some
times with faults of the system (``system.c``) or with a changed byte, and at last without.
``schedule.py`` says what has to hold, ``scenes.py`` which commands there are.
"""
