"""Training algorithms, one a file; `from saelab.train.algorithms import NAME` finds any of them by class name."""

from saelab.core.components import found_in

__getattr__ = found_in("saelab.train.algorithm", "Algorithm")
