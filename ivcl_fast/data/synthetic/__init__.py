"""Generators of synthetic data sets in the published formats of CATER, ACRE and Something-Else."""
