"""exp(u z) for all |u| <= U and |z| <= 1 as a short sum of powers: sum over m < M of q_m(z) u^m.

The Taylor series, economised (Lanczos 1938): its Chebyshev series is cut after M terms, which spreads the error evenly
over |u| <= U. Where a run of pixels has z evenly spaced from -1 to 1, the powers' sums over the classes replace the
sums at the pixels, and there are fewer of them.
"""

from functools import cache

import numpy as np
from jaxtyping import Float32, Float64
from numpy.polynomial import chebyshev

# Terms M and the largest U at which they miss exp(u z) by less than 4e-7 of exp(|u| - U (1 - |z|)), the least that a
# sum of exponentials with such slopes can be whose largest terms at z = -1 and z = 1 are 1.
REACH = {2: 0.001, 4: 0.093, 6: 0.457, 8: 1.091, 10: 1.922, 12: 2.889, 14: 3.949, 16: 5.073, 18: 6.243, 20: 7.445}
REACH |= {22: 8.672, 24: 9.918}
_SPARE = 12  # powers beyond the last that the Taylor series needs


def terms(reach: float) -> int | None:
    """How many powers |u| <= reach takes; None if it is too far."""
    return next((count for count, most in REACH.items() if reach <= most), None)


def coefficients(count: int, z: Float64[np.ndarray, "*n"]) -> Float32[np.ndarray, "m *n"]:
    """q_m(z) for the first `count` powers."""
    reach = REACH[count]
    power = np.arange(count + _SPARE)
    taylor = np.cumprod(np.where(power, reach / np.maximum(power, 1), 1.0))
    series = z[..., None] ** power * taylor
    return np.moveaxis(series @ _economy(count).T * reach ** -power[:count].astype(float), -1, 0).astype(np.float32)


@cache
def _economy(count: int) -> Float64[np.ndarray, "m n"]:
    """What becomes of a power of n: itself up to the last of m, and what the Chebyshev series leaves of the others."""
    columns = np.zeros((count, count + _SPARE))
    for power in range(count + _SPARE):
        kept = chebyshev.cheb2poly(chebyshev.poly2cheb(np.eye(power + 1)[power])[:count])
        columns[: len(kept), power] = kept
    return columns
