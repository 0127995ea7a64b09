"""Renders scenes with Blender's path tracer Cycles, like the published data sets.

Blender's Python module ``bpy`` (extra ``blender``) is 800 MB and under the GPL. It is never
imported here: :mod:`.script` runs in a separate process and receives scenes as JSON.
"""
