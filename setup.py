"""Where the packages lie; everything else about the project is in pyproject.toml.

``kernels/`` stands at the top of the checkout but is installed as ``ivcl_fast.kernels``: a
top-level ``kernels`` would shadow another library's name.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ivcl_fast", "ivcl_fast.*"]), "ivcl_fast.kernels"],
    package_dir={"ivcl_fast": "ivcl_fast", "ivcl_fast.kernels": "kernels"},
)
