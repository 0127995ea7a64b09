"""``make gpu-check``: :mod:`benchmarks.gpu_check.__main__` starts a process for each part."""
