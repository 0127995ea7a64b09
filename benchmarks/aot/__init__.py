"""Ahead-of-time compilation of the Triton kernels, without a GPU (``make aot``)."""
