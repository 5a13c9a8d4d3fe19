"""The noise of a camera from its stored values, and what is wrong with pixels."""

import numpy as np
import pytest
from skimage import data

from invem import DataError
from invem.analysis.camera import photon_transfer
from invem.analysis.pixels import bad_pixels, bits_used, structure


def scene(name, blur=0.0):
    u = getattr(data, name)().astype(float) / 255
    if not blur:
        return u
    # A lens: a product in the Fourier domain.
    f = [np.fft.fftfreq(n) for n in u.shape]
    window = np.exp(-2 * np.pi**2 * blur**2 * (f[0][:, None] ** 2 + f[1][None] ** 2))
    return np.clip(np.fft.ifft2(np.fft.fft2(u) * window).real, 0, 1)


def exposed(u, rng, gain, read, offset=100, peak=3900):
    """Returns a frame of 12 bits."""
    light = rng.poisson(u * (peak - offset) / gain)
    values = gain * light + offset + read * rng.normal(size=u.shape)
    return np.clip(np.round(values), 0, 4095).astype(np.uint16)


def noisy(u, rng, sigma):
    values = 300 + 3000 * u + sigma * rng.normal(size=u.shape)
    return np.clip(np.round(values), 0, 4095).astype(np.uint16)


@pytest.mark.parametrize("gain, read", [(0.8, 3.0), (2.5, 20.0), (5.0, 40.0)])
def test_pages_of_one_scene_give_gain_and_read_out_noise(gain, read):
    rng = np.random.default_rng(0)
    frames = [exposed(scene("camera"), rng, gain, read) for _ in range(8)]
    found = photon_transfer(frames, pages=True, offset=100)
    assert found.kind == "poisson-gaussian" and found.still
    assert found.gain == pytest.approx(gain, rel=0.05)
    assert abs(found.gain - gain) < 4 * found.gain_error
    assert abs(found.read - read) < max(0.1 * read, 3 * found.read_error)


@pytest.mark.parametrize("gain, read", [(0.8, 3.0), (2.5, 20.0), (5.0, 40.0)])
def test_single_frames_of_a_lens_give_gain_and_read_out_noise(gain, read):
    rng = np.random.default_rng(1)
    frames = [exposed(scene("camera", 1.5), rng, gain, read) for _ in range(12)]
    found = photon_transfer(frames, offset=100)
    assert found.kind == "poisson-gaussian" and not found.still
    assert found.gain == pytest.approx(gain, rel=0.1)
    assert abs(found.read - read) < max(0.1 * read, 3 * found.read_error)


def test_flat_levels_give_gain_and_read_out_noise_within_five_percent():
    # Levels of light beside each other: nothing is as fine as noise.
    rng = np.random.default_rng(2)
    u = np.repeat(np.linspace(0, 0.9, 16), 32)[None].repeat(256, 0)
    found = photon_transfer([exposed(u, rng, 2.0, 12.0) for _ in range(8)], offset=100)
    assert found.gain == pytest.approx(2, rel=0.05)
    assert found.read == pytest.approx(12, rel=0.1)


@pytest.mark.parametrize("sigma", [5, 20, 60])
@pytest.mark.parametrize("pages", [False, True])
def test_noise_of_one_level_is_told_from_that_of_photons(sigma, pages):
    rng = np.random.default_rng(3)
    frames = [noisy(scene("camera", 1.5), rng, sigma) for _ in range(8)]
    found = photon_transfer(frames, pages=pages)
    assert found.kind == "gaussian" and found.gain == 0 and found.still == pages
    assert found.sigma == pytest.approx(sigma, rel=0.08)


def test_without_an_offset_the_line_is_the_same():
    rng = np.random.default_rng(4)
    frames = [exposed(scene("camera", 1.5), rng, 2.5, 6.0) for _ in range(6)]
    free, given = photon_transfer(frames), photon_transfer(frames, offset=100)
    assert free.gain == given.gain and free.sigma == given.sigma
    floors = [v.read**2 - v.gain * v.offset for v in (free, given)]
    assert floors[0] == pytest.approx(floors[1], rel=1e-6) and free.read == 0


def test_clipped_light_does_not_flatten_the_line():
    rng = np.random.default_rng(5)
    u = np.clip(1.5 * scene("camera", 1.5), 0, 2)
    found = photon_transfer([exposed(u, rng, 2.5, 6.0) for _ in range(8)], offset=100)
    assert found.gain == pytest.approx(2.5, rel=0.12) and found.clipped > 0.1


def test_pages_that_move_are_left_to_the_differences_of_pixels():
    rng = np.random.default_rng(6)
    u = scene("camera", 1.5)
    frames = [noisy(np.roll(u, 5 * k, 1), rng, 20) for k in range(8)]
    found = photon_transfer(frames, pages=True)
    assert not found.still and found.sigma == pytest.approx(20, rel=0.08)


def test_frames_of_one_value_have_no_estimate():
    with pytest.raises(DataError, match="too few pixels"):
        photon_transfer([np.full((64, 64), 7, np.uint16)])


def test_white_noise_is_told_from_shared_noise():
    rng = np.random.default_rng(7)
    u = 1000 * scene("camera", 1.5)
    noise = 20 * rng.normal(size=(4, *u.shape))
    assert structure(list(u + noise)).words == []
    rows = structure(list(u + noise + 8 * rng.normal(size=(4, u.shape[0], 1))))
    assert [line[:4] for line in rows.words] == ["rows"]
    columns = structure(list(u + noise + 8 * rng.normal(size=(4, 1, u.shape[1]))))
    assert [line[:7] for line in columns.words] == ["columns"]
    soft = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))
    assert any("coarser" in line for line in structure(list(u + soft)).words)
    assert any("coarser" in line for line in structure(list(u + soft), still=True).words)


def test_dead_and_hot_pixels_are_counted():
    rng = np.random.default_rng(8)
    u = scene("camera", 1.5)[:200, :200]
    pages = [noisy(np.roll(u, 7 * k, 0), rng, 20).astype(float) for k in range(10)]
    assert bad_pixels(pages) == (0, 0)
    for page in pages:
        page[20, 30] = 321
        page[50, 60] = 4000 + rng.normal()
    assert bad_pixels(pages) == (1, 1)
    assert bad_pixels(pages[:7]) == (0, 0)


def test_bits_are_those_that_are_used():
    values = np.array([0, 16, 4095 * 16], np.uint16)
    assert bits_used(values) == (16, 4)
    assert bits_used(np.array([3, 100], np.uint16), white=4095) == (12, 0)
    assert bits_used(values.astype(np.float32)) is None
