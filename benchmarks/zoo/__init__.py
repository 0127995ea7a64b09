"""``accelerate`` on public models: what is replaced, whether answers stay, and what it gains.

``catalogue`` lists models, ``environments`` the packages that each group needs, ``measure`` runs
the models of one environment, and ``python -m benchmarks.zoo`` runs all of them.
"""
