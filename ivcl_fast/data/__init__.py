"""From video files to batches of patch rows.

* ``dataset``: the interface of data sets; ``formats``: CATER, ACRE, Something-Else and one's own
  videos; ``registry``: data sources by name; ``synthetic``: generators of data in these formats;
  ``remote``: copies of data in object storage.
* ``decode``: DALI and PyAV decoders; ``clip``: ``load_clip`` for single videos.
* ``store``: the frame store; ``loader``, ``stream`` and ``slots``: batches from the store, decoded
  anew, or of slots that a frozen encoder has computed.
* ``datamodule``: all of this together, from the settings of a run (``config``) to its loaders.
"""
