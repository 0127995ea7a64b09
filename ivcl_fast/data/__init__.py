"""From video files to batches of patch rows.

* ``dataset``: the interface of data sets; ``formats``: CATER, ACRE and Something-Else;
  ``registry``: data sources by name; ``synthetic``: generators of data in the same formats.
* ``decode``: DALI and PyAV decoders; ``clip``: ``load_clip`` for single videos.
* ``store``: the frame store; ``loader`` and ``stream``: batches from the store, or decoded anew.
* ``datamodule``: all of this together, from the settings of a run (``config``) to its loaders.
"""
