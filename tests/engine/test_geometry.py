from fractions import Fraction

import pytest

from napari_seamless.engine.geometry import Geometry

STORED = Geometry((40.0, 8.0, 8.0), (100.0, -3.0, 0.0), ("nanometer",) * 3)


def faces(geometry: Geometry, axis: int, voxel: int) -> tuple[float, float]:
    """Where a voxel begins and ends in the world."""
    centre = geometry.translation[axis] + voxel * geometry.scale[axis]
    return centre - geometry.scale[axis] / 2, centre + geometry.scale[axis] / 2


def of(scale, origin=(0, 0, 0)) -> Geometry:
    return STORED.of_prediction(tuple(map(Fraction, scale)), origin)


def test_a_prediction_voxel_by_voxel_lies_where_the_volume_does():
    assert of((1, 1, 1)) == STORED
    assert of((1, 1, 1), (2, 3, 4)).translation == (100 + 2 * 40, -3 + 3 * 8, 4 * 8)


def test_at_half_the_resolution_a_voxel_covers_two():
    half = of(("1/2", "1/2", "1/2"))
    assert half.scale == (80.0, 16.0, 16.0)
    assert half.translation == (120.0, 1.0, 4.0)  # between the first two centres
    for axis in range(3):
        assert faces(half, axis, 0) == (faces(STORED, axis, 0)[0], faces(STORED, axis, 1)[1])
        assert faces(half, axis, 5) == (faces(STORED, axis, 10)[0], faces(STORED, axis, 11)[1])


def test_at_twice_the_resolution_two_voxels_cover_one():
    twice = of((2, 2, 2))
    assert twice.scale == (20.0, 4.0, 4.0)
    assert twice.translation == (90.0, -5.0, -2.0)  # a quarter of a voxel towards the face
    for axis in range(3):
        assert faces(twice, axis, 6)[0] == faces(STORED, axis, 3)[0]
        assert faces(twice, axis, 7)[1] == faces(STORED, axis, 3)[1]


def test_the_origin_counts_voxels_of_the_prediction():
    part = of((1, 2, "1/2"), (3, 10, 2))
    assert part.scale == (40.0, 4.0, 16.0)
    assert faces(part, 0, 0)[0] == faces(STORED, 0, 3)[0]
    assert faces(part, 1, 0)[0] == faces(STORED, 1, 5)[0]
    assert faces(part, 2, 0)[0] == faces(STORED, 2, 4)[0]
    assert part.units == STORED.units


@pytest.mark.parametrize("geometry", [Geometry(), STORED, of((2, "1/3", 1), (1, 2, 3))])
def test_facts_say_it_all(geometry):
    assert Geometry.from_facts(geometry.facts) == geometry
    assert all(isinstance(each, list) for each in geometry.facts.values())
