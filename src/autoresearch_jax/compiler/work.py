"""What one operation of a training step does, from its trace or from its compilation."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does, over all the times that it runs."""

    scope: str  # the Python scopes that it comes from, its own name last
    line: str  # such as "train.py:197 in MLP.__call__"; "" if that is not known
    opcode: str
    name: str = ""  # of an instruction in the compiled module
    products: float = 0.0  # FLOPs of matrix products
    others: float = 0.0  # FLOPs of decompositions, elementwise operations, comparisons of sorts
    bytes: int = 0  # read from and written to main memory
    starts: int = 0  # of kernels
    cycles: int = 0  # by the estimate of a TPU's compiler
    summed: int = 0  # bytes of arrays that all devices add up
