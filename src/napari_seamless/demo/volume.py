"""A generated volume that looks like serial-section electron microscopy of neuropil.

Cells are the cells of a warped Voronoi tessellation, so the true membrane is known exactly: it is
where two cells meet. Everything else (organelles, noise, uneven sections) is there to make the
picture believable and the task honest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.special import expit

DEMO_SHAPE = (32, 256, 256)
"""Size of the demo volume in voxels, (Z, Y, X)."""
DEMO_SCALE = (40.0, 8.0, 8.0)
"""Size of one voxel in nm, (Z, Y, X)."""

# Lengths are nm. Grey values are fractions of the full range; 0 is black.
_SEED_SPACING = 260.0
_SEED_DISTANCE = 140.0
_BIG_CELL_SHARE = 0.12
_BIG_CELL_RADIUS = 500.0
_Z_SQUEEZE = 0.42  # neurites run along z rather than across it: cells are about twice as long there
_MEMBRANE_HALF_WIDTH = 15.0
_CYTOPLASM, _MEMBRANE_DEPTH = 0.71, 0.52
_NEIGHBOURS = 6

Float = NDArray[np.float32]


class _Cells(NamedTuple):
    """The tessellation, one value per voxel (Z, Y, X)."""

    label: NDArray[np.int32]
    distance: Float  # nm to the nearest membrane
    tilt: Float  # |z component| of its unit normal: 0 upright, 1 lying in the section


def demo_volume(
    shape: tuple[int, int, int] = DEMO_SHAPE, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Generate an EM-like volume and its membranes.

    Parameters
    ----------
    shape : tuple of int
        Size in voxels, (Z, Y, X). One voxel is ``DEMO_SCALE`` nm.
    seed : int
        Seed of the random generator: the same seed and shape give the same volume.

    Returns
    -------
    raw : numpy.ndarray
        Grey values, uint8, (Z, Y, X); membranes are dark.
    membranes : numpy.ndarray
        1 on a membrane, 0 elsewhere, uint8, (Z, Y, X).
    """
    sizes = list(shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"shape must be three positive sizes (Z, Y, X), not {shape}")
    rng = np.random.default_rng(seed)
    cells = _tessellate(shape, rng)
    image = _cytoplasm(cells, rng)
    _draw_reticulum(image, cells, rng)
    taken = _draw_mitochondria(image, cells, rng)
    _draw_vesicles(image, cells, taken, rng)
    image -= _membrane_darkness(cells, rng)
    return _expose(image, rng), _membrane_mask(cells)


def _smooth_noise(
    shape: tuple[int, ...], wavelength: float, rng: np.random.Generator, scale: tuple[float, ...]
) -> Float:
    """Band-limited noise of unit variance; `wavelength` and `scale` in nm."""
    # Drawn on a grid just fine enough for the wavelength, then enlarged: cheaper than a wide blur.
    factors = [max(1.0, wavelength / (4 * s)) for s in scale]
    coarse = [int(np.ceil(n / f)) + 3 for n, f in zip(shape, factors, strict=True)]
    sigma = [wavelength / (4 * s * f) for s, f in zip(scale, factors, strict=True)]
    noise = gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma, mode="wrap")
    noise /= noise.std() + 1e-6
    return _enlarge(noise, factors, shape)


def _enlarge(coarse: Float, factors: list[float], shape: tuple[int, ...]) -> Float:
    """Linear interpolation to `shape`; last axis first, while there is little to gather."""
    for axis in reversed(range(coarse.ndim)):
        position = np.arange(shape[axis]) / factors[axis]
        below = position.astype(np.intp)
        share = (position - below).astype(np.float32)
        share = share.reshape([-1 if a == axis else 1 for a in range(coarse.ndim)])
        low, high = coarse.take(below, axis), coarse.take(below + 1, axis)
        coarse = low + share * (high - low)
    return coarse


def _tessellate(shape: tuple[int, int, int], rng: np.random.Generator) -> _Cells:
    squeeze = np.array([_Z_SQUEEZE, 1.0, 1.0])
    extent = np.array(shape) * DEMO_SCALE * squeeze
    margin = 2 * _SEED_SPACING
    count = int(np.prod(extent + 2 * margin) / _SEED_SPACING**3)
    seeds = rng.uniform(-margin, extent + margin, (count, 3))
    # Seeds almost on top of each other would give cells thinner than a membrane.
    crowded = cKDTree(seeds).query_pairs(_SEED_DISTANCE, output_type="ndarray")[:, 1]
    seeds = np.delete(seeds, crowded, axis=0)
    owner = _merge_seeds(seeds, rng)

    points = _warped_points(shape, rng) * squeeze.astype(np.float32)
    distance, near = cKDTree(seeds).query(points, k=_NEIGHBOURS, workers=2)
    return _bisect(distance, near, seeds, owner, squeeze, shape)


def _merge_seeds(seeds: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int32]:
    """Give the seeds around a few chosen ones to the same cell: large, non-convex profiles."""
    owner = np.arange(len(seeds), dtype=np.int32)
    big = rng.choice(len(seeds), max(1, int(_BIG_CELL_SHARE * len(seeds))), replace=False)
    distance, nearest = cKDTree(seeds[big]).query(seeds)
    reach = _BIG_CELL_RADIUS * rng.uniform(0.3, 1.0, len(big))
    joined = distance < reach[nearest]
    owner[joined] = big[nearest[joined]]
    return owner


def _warped_points(shape: tuple[int, int, int], rng: np.random.Generator) -> Float:
    """Voxel positions in nm, (voxels, 3), displaced smoothly so that borders are wavy."""
    axes = [np.arange(n, dtype=np.float32) * s for n, s in zip(shape, DEMO_SCALE, strict=True)]
    grid = list(np.meshgrid(*axes, indexing="ij"))
    for axis in (1, 2):
        grid[axis] += 55 * _smooth_noise(shape, 420, rng, DEMO_SCALE)
        grid[axis] += 22 * _smooth_noise(shape, 180, rng, DEMO_SCALE)
        # Sections are never aligned perfectly.
        grid[axis] += rng.normal(0, 4, (shape[0], 1, 1)).astype(np.float32)
    return np.stack([g.ravel() for g in grid], axis=1)


def _bisect(
    distance: NDArray[np.float64],
    near: NDArray[np.intp],
    seeds: NDArray[np.float64],
    owner: NDArray[np.int32],
    squeeze: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> _Cells:
    """Distance of every voxel to the nearest plane that separates its cell from another one."""
    label = owner[near[:, 0]]
    squared = (distance**2).astype(np.float32)
    # Normals per nm of tissue, not of squeezed space.
    anchors = (seeds * squeeze).astype(np.float32)
    best = np.full(len(label), 1e3, np.float32)
    tilt = np.zeros(len(label), np.float32)
    for k in range(1, near.shape[1]):
        normal = anchors[near[:, k]] - anchors[near[:, 0]]
        length = np.sqrt(np.einsum("ij,ij->i", normal, normal)) + 1e-3
        gap = (squared[:, k] - squared[:, 0]) / (2 * length)
        closer = (owner[near[:, k]] != label) & (gap < best)
        best[closer] = gap[closer]
        tilt[closer] = np.abs(normal[closer, 0]) / length[closer]
    return _Cells(label.reshape(shape), best.reshape(shape), tilt.reshape(shape))


def _half_width(cells: _Cells) -> Float:
    # A section is a slab: a membrane that runs through it obliquely is seen as a wider band.
    return _MEMBRANE_HALF_WIDTH + 0.3 * DEMO_SCALE[0] * cells.tilt


def _membrane_mask(cells: _Cells) -> NDArray[np.uint8]:
    return (cells.distance < _half_width(cells)).astype(np.uint8)


def _membrane_darkness(cells: _Cells, rng: np.random.Generator) -> Float:
    width = _half_width(cells)
    profile = expit((width - cells.distance) / 3.0)
    # The same amount of stain spread over a wider band is fainter.
    strength: Float = (_MEMBRANE_HALF_WIDTH / width) ** 0.6
    strength *= 1 + 0.16 * _smooth_noise(cells.label.shape, 240, rng, DEMO_SCALE)
    strength *= _MEMBRANE_DEPTH * profile
    return strength


def _cytoplasm(cells: _Cells, rng: np.random.Generator) -> Float:
    """Grey of each cell, with a granular texture."""
    tint = rng.normal(0, 0.035, int(cells.label.max()) + 1).astype(np.float32)
    image = _CYTOPLASM + tint[cells.label]
    image += 0.085 * _smooth_noise(cells.label.shape, 45, rng, DEMO_SCALE)
    image += 0.035 * _smooth_noise(cells.label.shape, 110, rng, DEMO_SCALE)
    return image


def _draw_reticulum(image: Float, cells: _Cells, rng: np.random.Generator) -> None:
    """Thin faint lines inside some cells: contours of a noise field."""
    field = np.abs(_smooth_noise(image.shape, 260, rng, DEMO_SCALE))
    busy = rng.random(int(cells.label.max()) + 1) < 0.35
    where = _smooth_noise(image.shape, 300, rng, DEMO_SCALE) > 0.5
    inside = np.clip((cells.distance - 35) / 15, 0, 1) * (busy[cells.label] & where)
    image -= 0.20 * np.exp(-((field / 0.07) ** 2)) * inside


def _pick_inside(
    cells: _Cells, clearance: float, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Voxels (count, 3) at least `clearance` nm away from any membrane, or none."""
    inside = np.flatnonzero(cells.distance > clearance)
    if len(inside) == 0:
        return np.empty((0, 3), np.intp)
    return np.stack(np.unravel_index(rng.choice(inside, count), cells.label.shape), axis=1)


def _neighbourhood(
    centre: NDArray[np.intp], radius: float, shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], list[Float]]:
    """The part of the volume within `radius` nm of a voxel, and its offsets from there in nm."""
    slices, offsets = [], []
    for c, n, s in zip(centre, shape, DEMO_SCALE, strict=True):
        reach = int(radius / s) + 1
        start, stop = max(0, int(c) - reach), min(n, int(c) + reach + 1)
        slices.append(slice(start, stop))
        offsets.append(((np.arange(start, stop) - c) * s).astype(np.float32))
    return tuple(slices), list(np.meshgrid(*offsets, indexing="ij", sparse=True))


def _draw_mitochondria(image: Float, cells: _Cells, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Dark ellipsoids with a darker rim and cristae, kept off the membrane of their cell.

    Returns where they are, with some room around them.
    """
    volume_um3 = image.size * np.prod(DEMO_SCALE) * 1e-9
    taken = np.zeros(image.shape, bool)
    for centre in _pick_inside(cells, 110, max(1, round(9 * volume_um3)), rng):
        if not taken[tuple(centre)]:
            _draw_mitochondrion(image, cells, taken, centre, rng)
    return taken


def _draw_mitochondrion(
    image: Float,
    cells: _Cells,
    taken: NDArray[np.bool_],
    centre: NDArray[np.intp],
    rng: np.random.Generator,
) -> None:
    long, short = rng.uniform(240, 480), rng.uniform(100, 150)
    at, (z, y, x) = _neighbourhood(centre, long, image.shape)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    along = axis[0] * z + axis[1] * y + axis[2] * x
    across = np.sqrt(np.maximum(z**2 + y**2 + x**2 - along**2, 0))
    depth = short * (1 - np.sqrt((along / long) ** 2 + (across / short) ** 2))
    depth = np.minimum(depth, cells.distance[at] - 38)
    free = (cells.label[at] == cells.label[tuple(centre)]) & ~taken[at]
    depth = np.where(free, depth, -1e3)

    matrix = expit(depth / 4)
    rim = np.exp(-(((depth - 8) / 9) ** 2))
    bend = _smooth_noise(depth.shape, 180, rng, DEMO_SCALE)
    cristae = np.clip(np.sin(2 * np.pi * along / 62 + 1.6 * bend), 0, 1) ** 2 * (depth > 14)
    image[at] -= (0.17 * matrix + 0.20 * rim + 0.13 * cristae).astype(np.float32)
    taken[at] |= depth > -30


def _draw_vesicles(
    image: Float, cells: _Cells, taken: NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """Clusters of small rings, some with a dense core."""
    volume_um3 = image.size * np.prod(DEMO_SCALE) * 1e-9
    for cluster in _pick_inside(cells, 60, max(1, round(24 * volume_um3)), rng):
        label = cells.label[tuple(cluster)]
        for _ in range(rng.integers(15, 70)):
            offset = rng.normal(0, 90, 3) / DEMO_SCALE
            centre = np.round(cluster + offset).astype(np.intp)
            if np.all((centre >= 0) & (centre < image.shape)):
                at = tuple(centre)
                if cells.label[at] == label and cells.distance[at] > 38 and not taken[at]:
                    _draw_vesicle(image, taken, centre, rng)


def _draw_vesicle(
    image: Float, taken: NDArray[np.bool_], centre: NDArray[np.intp], rng: np.random.Generator
) -> None:
    radius = rng.uniform(16, 23)
    at, (z, y, x) = _neighbourhood(centre, 40, image.shape)
    # A vesicle is as thick as a section: it shows in one, and barely in the next.
    r = np.sqrt((0.8 * z) ** 2 + y**2 + x**2)
    ring = np.exp(-(((r - radius) / 6) ** 2))
    core = np.exp(-((r / 13) ** 2)) * (0.30 if rng.random() < 0.12 else -0.10)
    image[at] -= (0.36 * ring + core).astype(np.float32)
    taken[at] |= r < 36


def _expose(image: Float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur, light and noise of the microscope, then 8 bits."""
    image = gaussian_filter(image, (0.15, 0.8, 0.8))
    image += 0.030 * _smooth_noise(image.shape, 1500, rng, DEMO_SCALE)
    sections = (image.shape[0], 1, 1)
    gain = rng.normal(1, 0.06, sections).astype(np.float32)
    image = (image - 0.5) * gain + 0.5 + rng.normal(0, 0.025, sections).astype(np.float32)
    electrons = 100.0
    # The variance of shot noise is the signal; its normal approximation is far faster to draw.
    shot = rng.standard_normal(image.shape, dtype=np.float32)
    image += shot * np.sqrt(np.clip(image, 0.02, 1) / electrons)
    # A detector never resolves neighbouring pixels fully.
    image = gaussian_filter(image, (0, 0.55, 0.55))
    return np.clip(image * 255, 0, 255).astype(np.uint8)
