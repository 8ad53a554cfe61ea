import argparse
import collections
import contextlib
import datetime
import enum
import functools
import io
import os
import pathlib
import pickle
import re
import struct
import time
import types
import typing
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models import inspect_checkpoint, load_model
from napari_seamless.models.tensors.plain import plain
from napari_seamless.models.tensors.torch_save import Contents, read

GOOD = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
LINEAR = ("torch.nn:Linear", {"in_features": 3, "out_features": 2})


class Calls:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


class Config(dict):
    """Mappings that a training script has a class for."""


class Names(list):
    """Lists that a training script has a class for."""


class Colour(enum.Enum):
    RED = 1

    def __reduce_ex__(self, protocol):
        """As from Python 3.11.4 on; see `SavedBefore`."""
        return Colour, (self.value,)


class SavedBefore:
    """Is saved as Python 3.11.0 to 3.11.3 save a member of an Enum."""

    def __reduce_ex__(self, protocol):
        return getattr, (Colour, "RED")


class Scaler:
    def __init__(self):
        self.factor = 2.0
        self.shape = (1, 2)


def save(content, path, kind="zip", protocol=2):
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def refusal(path, error=ModelError, load=load_model, **options):
    """Return the message that refuses a file: one line that names it, and soon."""
    before = set(path.parent.rglob("*"))
    start = time.thread_time()
    with pytest.raises(error) as caught:
        load(path, *LINEAR, **options)
    assert time.thread_time() - start < 10  # it does not go on for ever
    assert "\n" not in str(caught.value)
    assert re.match(f"{re.escape(str(path))}[ :]", str(caught.value))
    assert set(path.parent.rglob("*")) == before
    return str(caught.value)


def rewritten(path, change, compress=zipfile.ZIP_STORED):
    """Write an archive of torch.save anew, its parts changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name.partition("/")[2], content))
    return path


class TestReading:
    @pytest.mark.parametrize("kind", ["zip", "legacy"])
    def test_tensors(self, tmp_path, kind):
        contents = read(save({"net": GOOD}, tmp_path / "net.pt", kind), "net.pt")
        assert contents.refused == ()
        torch.testing.assert_close(contents.content, {"net": GOOD})

    @pytest.mark.parametrize("kind", ["zip", "legacy"])
    def test_from_memory(self, tmp_path, kind):
        file = io.BytesIO(save(GOOD, tmp_path / "net.pt", kind).read_bytes())
        torch.testing.assert_close(read(file, "bundle.zip: model.pt").content, GOOD)
        with pytest.raises(ModelError, match=r"^bundle\.zip: model\.pt is nothing that torch\.sav"):
            read(io.BytesIO(b"<html>"), "bundle.zip: model.pt")

    @pytest.mark.parametrize("kind", ["zip", "legacy"])
    def test_what_training_scripts_save(self, tmp_path, kind):
        content = {
            "namespace": argparse.Namespace(depth=3, widths=[1, 2]),
            "simple": types.SimpleNamespace(a=1),
            "path": pathlib.PurePosixPath("/data/vol.h5"),
            "float": np.float64(3.5),
            "half": np.float16(0.25),
            "big endian": np.array([7], ">i4")[0],
            "int": np.int64(-4),
            "bool": np.bool_(True),
            "array": np.arange(3),
            "dtype": torch.float16,
            "size": torch.Size([1, 2]),
            "default": collections.defaultdict(list, {"a": [1]}),
            "ordered": collections.OrderedDict(a=1),
            "counter": collections.Counter("aab"),
            "set": {4},
            "frozen": frozenset({5}),
            "slice": slice(1, 2),
            "date": datetime.date(2020, 1, 2),
            "partial": functools.partial(nn.Conv3d, 1),
            "enum": Colour.RED,
            "class": nn.ReLU,
            "fraction": Fraction(1, 3),
            "config": Config(a=Config(b=1)),
            "types": {"a": typing.Any, "b": dict},
            "names": Names(["x"]),
            "object": Scaler(),
            "net": GOOD,
        }
        if kind == "legacy":  # it kept the source of such classes, which torch does not read safely
            content |= {"partial": None, "class": None}
        contents = read(save(content, tmp_path / "net.pt", kind), "net.pt")
        torch.testing.assert_close(contents.content["net"], GOOD)
        found = plain({**contents.content, "net": None})
        assert found == {
            "namespace": {"depth": 3, "widths": [1, 2]},
            "simple": {"a": 1},
            "path": "/data/vol.h5",
            "float": 3.5,
            "half": 0.25,
            "big endian": 7,
            "int": -4,
            "bool": True,
            "array": found["array"],
            "dtype": "torch.float16",
            "size": [1, 2],
            "default": {"a": [1]},
            "ordered": {"a": 1},
            "counter": {"a": 2, "b": 1},
            "set": [4],
            "frozen": "builtins.frozenset",
            "slice": "builtins.slice",
            "date": "datetime.date",
            "partial": None if kind == "legacy" else "functools.partial",
            "enum": f"{__name__}.Colour",
            "class": None if kind == "legacy" else "torch.nn.modules.activation.ReLU",
            "fraction": "fractions.Fraction",
            "config": {"a": {"b": 1}},
            "types": {"a": "typing.Any", "b": "builtins.dict"},
            "names": ["x"],
            "object": {"factor": 2.0, "shape": [1, 2]},
            "net": None,
        }
        assert found["array"].endswith("multiarray._reconstruct")
        classes = {"torch.nn.modules.conv.Conv3d", "torch.nn.modules.activation.ReLU"}
        assert set(contents.refused) == {
            *(classes if kind == "zip" else ()),
            *(f"{__name__}.{name}" for name in ("Colour", "Config", "Names", "Scaler")),
        }

    def test_what_an_older_python_calls_to_make_it_is_not_called(self, tmp_path):
        path = save({"net": GOOD, "enum": SavedBefore()}, tmp_path / "net.pt")
        with pytest.raises(UntrustedError, match=r"\(builtins\.getattr\); loading it could run"):
            read(path, "net.pt")

    def test_optimizers_and_schedulers(self, tmp_path):
        network = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(network.parameters())
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule())
        content = {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "random": np.random.RandomState(0).get_state(),
        }
        path = save(content, tmp_path / "net.pt")
        loaded = load_model(path, *LINEAR)
        torch.testing.assert_close(loaded.module.weight, network.weight)
        assert loaded.report.weights == "model"
        assert loaded.report.other_weights == ()

    def test_classes_that_others_allow_make_no_difference(self, tmp_path):
        path = save({"net": GOOD, "object": Scaler()}, tmp_path / "net.pt")
        allowed = [Scaler]
        torch.serialization.add_safe_globals(allowed)
        try:
            contents = read(path, path)
            assert type(contents.content["object"]) is not Scaler
            assert contents.refused == (f"{__name__}.Scaler",)
            assert Scaler in torch.serialization.get_safe_globals()
        finally:
            torch.serialization.clear_safe_globals()

    def test_nothing_is_allowed_afterwards(self, tmp_path):
        before = torch.serialization.get_safe_globals()
        path = save({"net": GOOD, "object": Scaler()}, tmp_path / "net.pt")
        read(path, path)
        assert set(torch.serialization.get_safe_globals()) == set(before)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)

    def test_functions_of_others_are_not_called(self, tmp_path):
        np.save(tmp_path / "numbers.npy", np.ones(3))
        hyper = {"numbers": Calls(np.load, str(tmp_path / "numbers.npy"))}
        path = save({"net": GOOD, "hyper": hyper}, tmp_path / "net.pt")
        contents = read(path, path)
        name = plain(contents.content["hyper"])["numbers"]
        assert name.startswith("numpy")
        assert contents.refused == (name,)
        assert inspect_checkpoint(path, *LINEAR).refused == (name,)

    def test_reading_does_not_warn(self, tmp_path, recwarn):
        read(save(GOOD, tmp_path / "net.pt"), "net.pt")
        read(save(GOOD, tmp_path / "old.pt", "legacy"), "old.pt")
        assert not recwarn.list


class Schedule:
    def __call__(self, step):
        return 1.0


HOSTILE = [
    (open, ("trap", "w"), "io.open"),
    (os.mkdir, ("trap",), f"{os.name if os.name == 'nt' else 'posix'}.mkdir"),
    (os.system, ("touch trap",), f"{os.name if os.name == 'nt' else 'posix'}.system"),
    (eval, ("open('trap', 'w')",), "builtins.eval"),
    (exec, ("open('trap', 'w')",), "builtins.exec"),
    (getattr, (pathlib.PurePosixPath(), "touch"), "builtins.getattr"),
    (__import__, ("antigravity",), "builtins.__import__"),
    (pickle.loads, (pickle.dumps(1),), "pickle.loads"),
    (functools.reduce, (max, [1]), "functools.reduce"),
    (bytearray, (10_000_000_000,), "builtins.bytearray"),
]


class TestHostile:
    @pytest.mark.parametrize(("function", "arguments", "name"), HOSTILE)
    @pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
    @pytest.mark.parametrize("wrapped", ["bare", "in place of weights", "beside weights"])
    def test_nothing_is_run(self, tmp_path, monkeypatch, function, arguments, name, kind, wrapped):
        monkeypatch.chdir(tmp_path)
        trap = Calls(function, *arguments)
        content = {
            "bare": trap,
            "in place of weights": {"state_dict": trap},
            "beside weights": {
                "pytorch-lightning_version": "2.6.0",
                "state_dict": GOOD,
                "hyper_parameters": {"a": [{"b": trap}]},
            },
        }[wrapped]
        if kind == "pickle":
            content = {"a": trap}
        path = save(content, tmp_path / "net.pt", kind)
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / "trap").unlink()
        said = refusal(path, UntrustedError)
        assert said.startswith(f"{path} is a pickled Python object (")
        assert name in said
        assert "nothing in it was run" in said
        assert refusal(path, UntrustedError, inspect_checkpoint) == said

    @pytest.mark.parametrize("protocol", range(2, 6))
    def test_names_in_any_protocol(self, tmp_path, protocol):
        path = tmp_path / "net.pt"
        path.write_bytes(pickle.dumps(Calls(os.system, "touch trap"), protocol))
        assert f"({'nt' if os.name == 'nt' else 'posix'}.system)" in refusal(path, UntrustedError)

    def test_names_of_python_2(self, tmp_path):
        path = tmp_path / "net.pt"
        path.write_bytes(b"\x80\x02c__builtin__\nexecfile\nX\4\0\0\0trap\x85R.")
        assert "(builtins.execfile)" in refusal(path, UntrustedError)

    def test_names_that_would_write_to_a_terminal(self, tmp_path):
        path = tmp_path / "net.pt"
        path.write_bytes(b"\x80\x02cevil\x1b[2J\n" + b"x" * 500 + b"\n.")
        said = refusal(path, UntrustedError)
        assert said.isprintable()
        assert len(said) < 600

    @pytest.mark.parametrize("kind", ["zip", "legacy"])
    def test_pickled_module(self, tmp_path, kind):
        path = save(nn.Linear(3, 2), tmp_path / "net.pt", kind)
        assert "object (torch.nn.modules.linear.Linear); " in refusal(path, UntrustedError)
        path = save({"epoch": 1, "model": nn.Linear(3, 2)}, tmp_path / "net.pt", kind)
        assert "object (torch.nn.modules.linear.Linear); " in refusal(path, UntrustedError)

    @pytest.mark.parametrize("count", [1_000, 2_500_000_000])
    @pytest.mark.parametrize("kind", ["zip", "legacy"])
    def test_storage_that_claims_more_than_there_is(self, tmp_path, count, kind):
        path = save({"weight": torch.zeros(6)}, tmp_path / "net.pt", kind)
        large = b"\x8a\x08" + struct.pack("<q", count)

        def lie(content):
            return re.sub(
                rb"(cpuq.)K\x06(.*?)K\x00K\x06\x85",
                lambda found: found[1] + large + found[2] + b"K\x00" + large + b"\x85",
                content,
                flags=re.S,
            )

        if kind == "zip":
            rewritten(path, lambda name, part: lie(part) if name == "data.pkl" else part)
        else:
            honest = path.read_bytes()
            path.write_bytes(lie(honest))
            assert path.read_bytes() != honest
        said = refusal(path)
        assert "is cut short or damaged (" in said
        if kind == "zip":
            assert f"claims {4 * count:,} bytes of part 0, which has 24" in said

    def test_tensor_that_is_larger_than_its_storage(self, tmp_path):
        path = save({"weight": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "net.pt")
        assert "'weight' claims 10,000,000,000 numbers, but has 4 bytes" in refusal(path)

    @pytest.mark.parametrize("claimed", [2**31, 10_000_000_000])
    def test_part_that_claims_more_than_there_is(self, tmp_path, claimed):
        path = save(GOOD, tmp_path / "net.pt")
        with zipfile.ZipFile(path) as archive:
            member = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
            content = bytearray(path.read_bytes())
        where = content.rindex(member.filename.encode()) - 46
        size = min(claimed, 2**32 - 2)
        content[where + 20 : where + 28] = struct.pack("<II", size, size)
        path.write_bytes(content)
        others = path.stat().st_size
        claim = int(re.search("its parts claim ([0-9,]+) bytes", refusal(path))[1].replace(",", ""))
        assert size < claim < size + others

    def test_compressed_parts(self, tmp_path):
        path = save({"weight": torch.zeros(1_000_000)}, tmp_path / "net.pt")
        rewritten(path, lambda _, part: part, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10_000
        assert "is compressed, which torch.save never does" in refusal(path)

    @pytest.mark.parametrize(
        ("tensor", "said"),
        [
            (torch.zeros(2, 3, device="meta"), "'weight' is meta, so it has no numbers"),
            (torch.zeros(2, 3).to_sparse(), "'weight' is sparse or quantised"),
        ],
    )
    def test_tensors_without_numbers(self, tmp_path, tensor, said):
        path = save({**GOOD, "weight": tensor}, tmp_path / "net.pt")
        with pytest.raises(ModelError) as caught:
            load_model(path, *LINEAR)
        assert said in str(caught.value)

    @pytest.mark.parametrize(
        "program",
        [
            b")" + b"\x85" * 100_000 + b"K\1s.",  # a key whose hash would overflow the stack
            b")q\1" + b"h\1h\1\x86q\1" * 200 + b"K\1s.",  # a key whose hash would take for ever
            b"]q\1" * 100_000 + b"a" * 99_999 + b".",
            b"}" * 50_000 + b"K\1" * 10 + b".",
            b"Q.",
            b"0.",
            b"h\7.",
            b"X\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\x7f",
        ],
    )
    def test_programs_that_never_end_or_make_no_sense(self, tmp_path, program):
        path = save(GOOD, tmp_path / "net.pt")
        rewritten(path, lambda name, part: b"\x80\2}" + program if name == "data.pkl" else part)
        assert re.search("is cut short or damaged|no weights|holds a ", refusal(path))

    def test_many_parts_in_the_same_place(self, tmp_path):
        path = save({"weight": torch.zeros(1000)}, tmp_path / "net.pt")
        with zipfile.ZipFile(path, "a") as archive:
            first = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
            for index in range(1, 300):
                copy = zipfile.ZipInfo(first.filename[:-1] + str(index))
                copy.header_offset, copy.CRC = first.header_offset, first.CRC
                copy.file_size = copy.compress_size = first.file_size
                archive.filelist.append(copy)
                archive.NameToInfo[copy.filename] = copy
            archive._didModify = True
        assert "its parts claim 1,2" in refusal(path)


class TestWeightsThatAreNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_loading_refuses_and_inspecting_reports(self, tmp_path, value):
        path = save({**GOOD, "bias": torch.tensor([0.0, value])}, tmp_path / "net.pt")
        assert "holds weights that are NaN or infinite (bias)" in refusal(path)
        assert inspect_checkpoint(path, *LINEAR).non_finite == ("bias",)


class TestTrust:
    @pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
    def test_pickled_module(self, tmp_path, network, kind):
        path = save(network, tmp_path / "net.pt", kind)
        loaded = load_model(path, trust=True)
        volume = torch.rand(1, 1, 4, 5, 6)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(volume), network(volume))
        assert not loaded.module.training
        assert (loaded.report.format, loaded.report.architecture) == (
            "pickled module",
            "Sequential",
        )
        assert loaded.report.notes == ("code in the file was run, because you trust it",)
        assert loaded.report.parameters == 130

    def test_module_in_a_mapping_and_parallel(self, tmp_path, network):
        content = {"epoch": 1, "model": nn.DataParallel(network)}
        loaded = load_model(save(content, tmp_path / "net.pt"), trust=True)
        assert type(loaded.module) is nn.Sequential
        assert loaded.report.weights == "model"

    def test_trusted_state_dict_is_still_read_safely(self, tmp_path):
        report = load_model(save(GOOD, tmp_path / "net.pt"), *LINEAR, trust=True).report
        assert (report.format, report.notes) == ("state dict", ())

    def test_weights_beside_what_runs(self, tmp_path):
        content = {"model": GOOD, "made": Calls(getattr, 1, "real")}
        path = save(content, tmp_path / "net.pt")
        assert "(builtins.getattr)" in refusal(path, UntrustedError)
        loaded = load_model(path, *LINEAR, trust=True)
        torch.testing.assert_close(loaded.module.weight.detach(), GOOD["weight"])
        assert "code in the file was run, because you trust it" in loaded.report.notes

    def test_bare_pickle_of_a_state_dict(self, tmp_path):
        path = save(GOOD, tmp_path / "net.pt", "pickle")
        assert "is a pickled Python object (" in refusal(path, UntrustedError)
        loaded = load_model(path, *LINEAR, trust=True)
        torch.testing.assert_close(loaded.module.weight.detach(), GOOD["weight"])

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (Calls(int, "three"), "could not be loaded: ValueError: invalid literal"),
            ([1, 2], "holds a list; give a state dict"),
        ],
    )
    def test_what_does_not_load(self, tmp_path, content, said):
        assert said in refusal(save(content, tmp_path / "net.pt", "pickle"), trust=True)

    def test_module_that_is_not_installed(self, tmp_path):
        path = tmp_path / "net.pt"
        path.write_bytes(b"\x80\x02clab_networks\nNet\n)R.")
        assert "needs the module lab_networks, which is not installed" in refusal(path, trust=True)


class TestPlain:
    def test_is_bounded(self):
        loop = []
        loop.append(loop)
        many = {str(index): [index] * 10 for index in range(100_000)}
        shared = ["x"]
        for _ in range(60):
            shared = [shared, shared]
        for value in (loop, many, shared):
            assert len(str(plain(value))) < 200_000
        assert len(plain("x" * 10_000)) == 503

    def test_tensors(self):
        assert plain({"a": torch.zeros(2, 3)}) == {"a": "float32 tensor (2, 3)"}


def test_contents_are_frozen():
    with pytest.raises(AttributeError):
        Contents(1).content = 2
