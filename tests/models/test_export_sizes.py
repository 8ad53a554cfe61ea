import pytest

from napari_seamless.models.graphs.export_sizes import SizeRules
from napari_seamless.models.graphs.export_values import RefusedError

Z = "L['image'].size()[2]"
Y = "L['args'][0].size()[3]"


def rules(size="s0", ranges=None, conditions=()):
    return SizeRules(["s9", 1, size, "s2", "s3"], ranges or {}, conditions)


def takes(found, z, y=10):
    return found.problem((1, 1, z, y, 10)) is None


@pytest.mark.parametrize(
    ("size", "taken", "refused"),
    [
        ("s0", (1, 2, 7), ()),
        ("2*s0", (2, 4), (3,)),
        ("4*s0 + 1", (5, 9), (4, 8)),
        ("s0*3 - 1", (2, 5), (3, 4)),
        ("-(-2*s0)", (2, 4), (3,)),
        ("2*(s0 + 1)", (4, 6), (5,)),
        ("Symbol('s0', positive=True, integer=True)", (1, 5), ()),
        ("Mul(Integer(8), Symbol('s0', positive=True))", (8, 16), (12,)),
        ("Add(Mul(Integer(2), Symbol('s0')), Integer(-1))", (3, 5), (4,)),
        ("Add(Integer(1), Integer(2), Symbol('s0'))", (4, 5), ()),
        ("Mul(Integer(2), Integer(2), Symbol('s0'))", (4, 8), (6,)),
    ],
)
def test_sizes(size, taken, refused):
    found = rules(size)
    assert found.shape == (None, 1, None, None, None)
    assert found.unread == ()
    assert all(takes(found, z) for z in taken)
    assert not any(takes(found, z) for z in refused)


def test_ranges():
    found = rules("2*s0", {"s0": (3, 5)})
    assert [z for z in range(1, 20) if takes(found, z)] == [6, 8, 10]
    assert takes(rules("s0", {"s0": (2, None)}), 1)  # torch writes 2 for any size


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        (f"{Z} % 4 == 0", (4, 8)),
        (f"Mod({Z}, 4) == 0", (4, 8)),
        (f"(4*({Z} // 4)) == {Z}", (4, 8)),
        (f"FloorDiv({Z}, 4) >= 2", (8, 9, 10, 11)),
        (f"{Z} / 2 > 4.5", (10, 11)),
        (f"max(1, {Z} - 8) != 1", (10, 11)),
        (f"Min({Z}, 6) < 6", (3, 4, 5)),
        (f"3 < {Z} <= 5", (4, 5)),
        (f"not ({Z} < 10)", (10, 11)),
        (f"{Z} == 3 or {Z} == 5", (3, 5)),
        (f"{Z} > 3 and -{Z} > -6", (4, 5)),
        (f"{Z} + {Y} == 15", (5,)),
        ("True", tuple(range(3, 12))),
    ],
)
def test_conditions(condition, taken):
    found = rules(conditions=[condition, condition])
    assert found.unread == ()
    assert tuple(z for z in range(3, 12) if takes(found, z)) == taken


def test_problem_names_the_axes():
    found = rules(conditions=[f"(4*({Z} // 4)) == {Z}"])
    assert found.problem((1, 1, 7, 8, 8)) == "4 * (Z // 4) == Z"
    planes = SizeRules(["s0", 1, "s1", "s2"], {}, ["L['image'].size()[2] % 4 == 0"])
    assert planes.problem((1, 1, 7, 8)) == "Y % 4 == 0"


@pytest.mark.parametrize("size", ["s0*s1", "s0**2", "-s0", "Max(1, s0)", "s0 +", "2", "1/s0"])
def test_sizes_that_are_too_involved(size):
    found = rules(size)
    assert found.unread == (size,)
    assert takes(found, 7)


@pytest.mark.parametrize(
    "condition",
    [
        f"{Z} ** 9999999999 > 1",
        f"{Z} // 0 == 1",
        "L['image'].stride()[0] == 1",
        "L['image'].size()[7] == 1",
        "L['image'].ndim == 5",
        f"Unknown({Z}, 2) == 1",
        "'text' == 1",
        "(" * 5000,
        f"{'-' * 200}{Z} == 1",
        f"{Z} == 1 " * 2000,
    ],
)
def test_conditions_that_are_too_involved(condition):
    found = rules(conditions=[condition])
    assert found.unread == (condition,)
    assert takes(found, 7)


@pytest.mark.parametrize(
    "text", ["open('file', 'w')", "__import__('os')", "().__class__", "eval('1')", "print(1) == 2"]
)
def test_what_would_run_is_refused(text):
    with pytest.raises(RefusedError):
        rules(conditions=[text])
    with pytest.raises(RefusedError):
        rules(text)
