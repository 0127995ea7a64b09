"""The parts of ``make gpu-check``: each measures one thing, in a process of its own."""
