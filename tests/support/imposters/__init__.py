"""Modules that look like parts of a ViT, and those among them that compute something else.

``families`` and ``mlps`` have attention, MLPs and blocks as public packages write them, in steps,
and ``mutations`` has other steps. ``generate`` draws modules from a seed, and ``check`` compares
each with itself after :func:`ivcl_fast.accelerate`. ``python -m tests.support.imposters`` runs all.
"""
