"""YAML of others: plain values, or one line that says why not."""

import pytest
import yaml

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.guarded_yaml import read_yaml

DOUBLING = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)
)
MERGING = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)
)


def test_plain_values_are_those_of_yaml():
    text = "a: &a {b: [1, 2.5, x]}\nc: *a\nd:\n  <<: *a\n  e: no\nf: 1.0e-5\n"
    assert read_yaml(text, "it") == yaml.safe_load(text)
    assert read_yaml("", "it") is None


def test_version_1_2():
    assert read_yaml("a: 1e-5\nb: no\nc: true\nd: -2E3", "it", "1.2") == {
        "a": 1e-5,
        "b": "no",
        "c": True,
        "d": -2000.0,
    }
    with pytest.raises(ModelError, match="merges mappings"):
        read_yaml("a: &a {b: 1}\nc: {<<: *a}", "it", "1.2")


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (DOUBLING, "more than 100,000 values"),
        (MERGING, "more than 100,000 values"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("[" * 50_000, "deeper than 64 levels"),
        ("- " * 10_000, "cannot be read"),
        ("\n".join(" " * i + "a:" for i in range(80)), "deeper than 64 levels"),
        ("a: 0x" + "f" * 1000, "no computer takes"),
        ("x" * 300_000, "larger than 262,144 bytes"),
        ("a: !!python/object/apply:os.mkdir [trap]", "os.mkdir"),
        ("a: {", "not usable YAML"),
        ("a: \x00", "cannot be read"),
        ("a: 2001-99-99", "cannot be read"),
    ],
)
def test_hostile_texts_are_refused_in_one_line(text, why, version, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refused:
        read_yaml(text, "b.zip: c.yaml", version)
    said = str(refused.value)
    assert said.startswith("b.zip: c.yaml ")
    assert why in said
    assert "\n" not in said
    assert not (tmp_path / "trap").exists()
