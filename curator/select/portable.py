"""The natural logarithm from IEEE 754's exactly rounded operations alone.

Library logarithms differ in the last bit between machines and vector units; what a mix's id stands for may not.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LN2 = 0.6931471805599453
_TERMS = 12  # of the series in s**2 <= 0.0295: the rest is below 1e-18


def portable_log(values: npt.ArrayLike) -> Floats:
    """Natural logarithm of positive finite numbers, to about 2 units in the last place, the same bits everywhere."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, mantissa * 2, mantissa)
    exponent = exponent - low
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    total = np.full_like(s, 1 / (2 * _TERMS + 1))
    for k in range(_TERMS - 1, -1, -1):
        total = total * square + 1 / (2 * k + 1)
    result: Floats = exponent * _LN2 + 2 * s * total
    return result
