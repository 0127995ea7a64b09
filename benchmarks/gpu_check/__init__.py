"""What ``make gpu-check`` runs: ``python -m benchmarks.gpu_check``.

It starts ``benchmarks.gpu_check.parts`` once for each part, and the tests that need a GPU under the
plugin ``benchmarks.gpu_check.pytest_outcomes``.
"""
