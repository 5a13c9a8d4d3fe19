"""Files of frames: units, formats, and frames restored whole."""

import numpy as np
import pytest

from invem import DataError
from invem.frames import Units


def test_stored_values_come_back_from_the_range_of_signals():
    units = Units(low=100.0, high=4095.0, how="12 bits")
    stored = np.array([100, 101, 2000, 4095, 5000], np.uint16)
    signal = units.signal(stored)
    assert signal[0] == -1 and signal[3] == 1 and signal[4] > 1  # nothing is clipped on the way in
    np.testing.assert_allclose(units.stored(signal), stored, atol=1e-3)
    np.testing.assert_allclose(units.spread(signal, np.full(5, 0.1)), 0.1 * (4095 - 100) / 2)
    assert Units(**units.as_dict()) == units
    with pytest.raises(DataError, match="below high"):
        Units(low=1.0, high=1.0)


def test_photon_noise_has_one_level_after_the_transform():
    units = Units(low=100.0, high=4095.0, gain=2.5, offset=100.0, read=6.0)
    rng = np.random.default_rng(0)
    for light in (20.0, 100.0, 1000.0):  # photons
        counts = rng.poisson(light, 400_000)
        stored = 2.5 * counts + 100 + 6 * rng.normal(size=counts.size)
        assert np.std(units.signal(stored)) == pytest.approx(units.sigma, rel=0.03)
    stored = np.linspace(100, 4095, 50)
    np.testing.assert_allclose(units.stored(units.signal(stored)), stored, atol=2e-3)
    low, high = (units.stored(units.signal(stored) + s * units.sigma) for s in (-0.5, 0.5))
    slope = units.spread(units.signal(stored), np.full(50, units.sigma))
    np.testing.assert_allclose(high - low, slope, rtol=0.01)
