"""The few powers that stand for an exponential, against it, in float64."""

import numpy as np
import pytest

from segbench.kernels import powers


@pytest.mark.parametrize("count", powers.REACH)
def test_the_powers_miss_the_exponential_by_less_than_they_claim(count):
    reach = powers.REACH[count]
    z, u = np.linspace(-1, 1, 41), np.linspace(-reach, reach, 81)[:, None]
    right = np.exp(u * z)
    found = u ** np.arange(count) @ powers.coefficients(count, z).astype(np.float64)
    least = np.exp(np.abs(u) - reach * (1 - np.abs(z)))
    rounding = 6e-8 * np.exp(np.abs(u * z))  # of the coefficients, which are float32
    assert (np.abs(found - right) - rounding <= 4.1e-7 * least).all()


def test_as_few_powers_as_reach_far_enough_are_taken():
    assert [powers.terms(reach) for reach in (0.0, 0.457, 0.458, 9.0)] == [2, 6, 8, 24]
    assert powers.terms(9.92) is None
