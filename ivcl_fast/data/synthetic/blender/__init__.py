"""Draws scenes with Blender's path tracer Cycles, as the published data sets were drawn.

Blender's Python module ``bpy`` (extra ``blender``) is 800 MB and under the GPL. It is never
imported here: :mod:`.script` runs in a process of its own and is given numbers.
"""
