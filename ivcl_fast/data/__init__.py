"""From video files to batches of patch rows.

* ``dataset``: the interface of data sets; ``formats``: CATER, ACRE, Something-Else and your own
  videos; ``registry``: data sources by name; ``synthetic``: generators of data in these formats.
* ``decode``: DALI and PyAV decoders; ``clip``: ``load_clip`` for single videos.
* ``store``: the frame store; ``loader``, ``stream`` and ``slots``: batches from the store, from
  videos decoded in every epoch, or of precomputed slots.
* ``datamodule``: makes the loaders of a run from its settings (``config``).
"""
