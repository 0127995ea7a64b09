"""Data sets made here, written in the true formats of the ones they stand for."""
