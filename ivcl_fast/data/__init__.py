"""From video files to batches of patch rows."""
