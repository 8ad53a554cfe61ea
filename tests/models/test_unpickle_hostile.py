"""Files that are made to take time, memory or places in it, or to put themselves before methods."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models import load_model
from napari_seamless.models.graphs.export_values import RefusedError, operation
from napari_seamless.models.tensors import safetensors as safetensors_module
from napari_seamless.models.tensors.pickle_calls import Calls, Global, Tuple
from napari_seamless.models.tensors.state_dicts import weight_sets
from napari_seamless.models.tensors.unpickle import read

LINEAR = ("torch.nn:Linear", {"in_features": 4, "out_features": 1, "bias": False})
NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def tuple_of(*values):
    return b"(" + b"".join(values) + b"t"


def mapping(**entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


ORDERED = call(named("collections", "OrderedDict"))
EVIL = named("evil", "Evil")


def tensor_arguments(size=(1, 4), stride=(4, 1)):
    kind = named("torch", "FloatStorage")
    storage = tuple_of(text("storage"), kind, text("0"), text("cpu"), number(4)) + b"Q"
    sizes = (tuple_of(*map(number, each)) for each in (size, stride))
    return (storage, number(0), *sizes, b"\x89", ORDERED)


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
TENSOR = call(REBUILD, *tensor_arguments())


def write(folder, program):
    path = folder / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", NUMBERS)
        archive.writestr("archive/version", "3\n")
    return path


def refusal(path, error=ModelError):
    with pytest.raises(error) as caught:
        load_model(path, *LINEAR)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


def reads(path):
    return read(path, path).content


def weight_of(path):
    return load_model(path, *LINEAR).module.weight


class TestAttributes:
    @pytest.mark.parametrize("name", ["items", "values", "keys", "get", "__class__"])
    def test_of_a_mapping_hide_no_method(self, tmp_path, name):
        entries = b"(" + text("weight") + TENSOR + b"u"
        path = write(
            tmp_path, ORDERED + entries + mapping(**{name: EVIL, "_metadata": ORDERED}) + b"b"
        )
        assert weight_of(path).tolist() == [[1, 2, 3, 4]]
        assert list(vars(reads(path))) == ["_metadata"]

    def test_of_a_mapping_within_others(self, tmp_path):
        inner = ORDERED + mapping(items=EVIL) + b"b"
        content = reads(write(tmp_path, mapping(a=tuple_of(b"](" + inner + b"e"))))
        assert vars(content["a"][0][0]) == {}

    @pytest.mark.parametrize("name", ["detach", "numel", "untyped_storage", "is_floating_point"])
    @pytest.mark.parametrize("parameter", [True, False])
    def test_of_a_tensor_hide_no_method(self, tmp_path, name, parameter):
        state = mapping(**{name: EVIL})
        if parameter:
            function = named("torch._utils", "_rebuild_parameter_with_state")
            tensor = call(function, TENSOR, b"\x88", ORDERED, state)
        else:
            function, kind = (
                named("torch._tensor", "_rebuild_from_type_v2"),
                named("torch", "Tensor"),
            )
            tensor = call(function, REBUILD, kind, tuple_of(*tensor_arguments()), state)
        path = write(tmp_path, mapping(weight=tensor))
        assert weight_of(path).tolist() == [[1, 2, 3, 4]]
        assert vars(reads(path)["weight"]) == {}

    def test_what_holds_itself(self, tmp_path):
        content = reads(write(tmp_path, b"]q\x01(" + TENSOR + b"h\x01e"))
        assert content[1] is content


class TestCalls:
    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("torch", "FloatTensor"),
            ("torch", "Tensor"),
            ("torch.cuda", "HalfTensor"),
            ("torch.storage", "UntypedStorage"),
            ("torch.storage", "TypedStorage"),
        ],
    )
    @pytest.mark.parametrize("opcode", [b"R", b"\x81"])
    def test_what_takes_memory_as_told(self, tmp_path, module, name, opcode):
        program = named(module, name) + b"(" + number(10) + b"t" + opcode
        said = refusal(write(tmp_path, mapping(weight=TENSOR, other=program)))
        assert f"it calls {module}.{name}, which takes any memory" in said

    def test_by_what_makes_tensors_of_a_type(self, tmp_path):
        function, kind = named("torch._tensor", "_rebuild_from_type_v2"), named("torch", "Tensor")
        for inner in (named("torch", "FloatTensor"), named("_codecs", "encode"), EVIL):
            made = call(function, inner, kind, tuple_of(number(10)), mapping())
            said = refusal(write(tmp_path, mapping(weight=made)))
            assert "it makes a tensor by" in said

    def test_arguments_that_are_no_tuple(self, tmp_path):
        made = named("torch", "FloatTensor") + b"](" + number(10) + b"eR"
        assert "what is no tuple" in refusal(write(tmp_path, mapping(weight=made)))

    def test_nested_tensors(self, tmp_path):
        made = call(named("torch._utils", "_rebuild_nested_tensor"), TENSOR, TENSOR, TENSOR, TENSOR)
        assert "_rebuild_nested_tensor, which takes" in refusal(write(tmp_path, mapping(a=made)))

    def test_copies_of_expanded_tensors(self, tmp_path):
        tensor = call(REBUILD, *tensor_arguments((10**5, 10**5), (0, 0)))
        function = named("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
        made = call(function, tensor, named("torch", "float64"), text("cpu"), b"\x89")
        said = refusal(write(tmp_path, mapping(weight=made)))
        assert "it copies tensors that claim more numbers" in said

    def test_sizes_as_torch_once_wrote_them(self, tmp_path):
        storage, offset, size, *rest = tensor_arguments()
        made = call(REBUILD, storage, offset, call(named("torch", "Size"), size), *rest)
        assert weight_of(write(tmp_path, mapping(weight=made))).shape == (1, 4)

    @pytest.mark.parametrize("encoding", ["hex", "unicode_escape", "utf-8"])
    def test_encodings_that_grow(self, tmp_path, encoding):
        made = call(named("_codecs", "encode"), text("a"), text(encoding))
        assert "anything but a text in latin1" in refusal(write(tmp_path, mapping(a=made)))

    def test_encoded_again(self, tmp_path):
        encode = named("_codecs", "encode")
        made = call(encode, call(encode, text("a"), text("latin1")), text("latin1"))
        assert "anything but a text in latin1" in refusal(write(tmp_path, mapping(a=made)))

    def test_bytes(self, tmp_path):
        content = {"a": b"\xff\x00abc", "b": [b"a"] * 3, "weight": torch.ones(1, 4)}
        torch.save(content, path := tmp_path / "net.pt")
        assert reads(path)["a"] == b"\xff\x00abc"

    def test_one_text_encoded_often(self):
        calls = Calls()
        calls.constant("a" * 2**23)
        given = Tuple.of(["a" * 2**23, "latin1"])
        for _ in range(3):  # 24 MiB, of 8 in the file and 16 to spare
            calls.call(Global("_codecs", "encode"), given)
        with pytest.raises(ValueError, match="again and again"):
            calls.call(Global("_codecs", "encode"), given)

    def test_one_long_tuple_given_often(self):
        calls, given = Calls(), Tuple.of([None] * 1_000_000)
        for _ in range(10):
            calls.call(Global("evil", "Evil"), given)
        with pytest.raises(ValueError, match="millions of arguments"):
            calls.call(Global("evil", "Evil"), given)


class TestKeys:
    def test_numbers_that_collide(self, tmp_path):
        keys = b"".join(number(each * (2**61 - 1)) + b"N" for each in range(1, 1_100))
        said = refusal(write(tmp_path, mapping(weight=TENSOR, x=b"}(" + keys + b"u")))
        assert "whole numbers beyond any use" in said

    def test_tuples(self, tmp_path):
        keys = b"".join(tuple_of(number(each)) + b"N" for each in range(1, 5_100))
        said = refusal(write(tmp_path, mapping(weight=TENSOR, x=b"}(" + keys + b"u")))
        assert "keys that are no names or numbers" in said

    def test_what_training_writes_stays(self, tmp_path):
        content = {"weight": torch.ones(1, 4), "x": [2**127, 2**64], "y": {("a", 1): 2}}
        torch.save({"state_dict": {"weight": torch.ones(1, 4)}, **content}, p := tmp_path / "a.pt")
        assert reads(p)["y"] == {("a", 1): 2}
        assert reads(p)["x"] == [2**127, 2**64]


def test_bare_pickle_is_searched_at_its_beginning_only(tmp_path):
    path = tmp_path / "net.pkl"
    with path.open("wb") as file:
        file.write(b"\x80\x02" + named("posix", "system") + b"0B" + struct.pack("<I", 2**30))
        file.truncate(2**31)

    class Counting(io.FileIO):
        most = 0

        def read(self, size=-1):
            Counting.most = max(Counting.most, size)
            return super().read(size)

    with Counting(path) as file, pytest.raises(UntrustedError, match=r"\(posix.system\)"):
        read(file, path)
    assert Counting.most <= 2**20


def test_zipped_again(tmp_path):
    torch.save({"weight": torch.ones(1, 4)}, path := tmp_path / "net.pt")
    again = tmp_path / "again.pt"
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", kind) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        if kind == zipfile.ZIP_DEFLATED:
            said = refusal(again)
            assert "was zipped again" in said
            assert "zip -0 -r" in said
            assert "download" not in said
    assert weight_of(again).tolist() == [[1, 1, 1, 1]]  # as the message says to do


class TestTypes:
    @pytest.mark.parametrize(
        "kind", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "bits8"]
    )
    def test_that_are_only_stored(self, tmp_path, kind):
        tensor = torch.zeros(1, 4, dtype=torch.uint8).view(getattr(torch, kind))
        torch.save({"a.weight": tensor}, path := tmp_path / "net.pt")
        assert f"tensor 'a.weight' is {kind}, in which" in refusal(path)

    @pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
    def test_that_are_only_stored_in_safetensors(self, tmp_path, kind):
        tensor = torch.zeros(1, 4).to(getattr(torch, kind))
        safetensors.torch.save_file({"a.weight": tensor}, path := tmp_path / "net.safetensors")
        assert f"tensor 'a.weight' is {kind}, in which" in refusal(path)

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
    def test_that_stay(self, tmp_path, kind):
        torch.save({"weight": torch.ones(1, 4, dtype=kind)}, path := tmp_path / "net.pt")
        assert weight_of(path).tolist() == [[1, 1, 1, 1]]


class TestSafetensors:
    def test_header_beyond_what_is_allowed(self, tmp_path):
        path = tmp_path / "net.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", 100_000_001) + b"{")
            file.truncate(100_000_100)
        assert "its header claims 100,000,001 bytes, 100,000,000 are allowed" in refusal(path)

    def test_what_does_not_fit_in_memory(self, tmp_path, monkeypatch):
        safetensors.torch.save_file(
            {"weight": torch.ones(1, 4)}, path := tmp_path / "a.safetensors"
        )

        def full(*_, **__):
            raise MemoryError

        monkeypatch.setattr(safetensors_module, "safe_open", full)
        assert "which do not fit in memory" in refusal(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    program = torch.export.export(nn.Conv3d(1, 1, 1).eval(), (torch.ones(1, 1, 4, 4, 4),))
    torch.export.save(program, path)
    return path


def changed(path, folder, name, change):
    """Return a copy of an archive in which one of its descriptions is changed."""
    copy = folder / "net.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for each in old.namelist():
            content = old.read(each)
            if each.endswith(name):
                content = json.loads(content)
                change(content)
                content = json.dumps(content)
            new.writestr(each, content)
    return copy


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
class TestExported:
    def test_expanded_weights(self, exported, tmp_path):
        def expand(config):
            (meta,) = [e["tensor_meta"] for k, e in config["config"].items() if "bias" in k]
            meta["sizes"] = [{"as_int": 10**5}, {"as_int": 3 * 10**4}]
            meta["strides"] = [{"as_int": 0}] * 2

        path = changed(exported, tmp_path, "model_weights_config.json", expand)
        with pytest.raises(ModelError, match=r"'bias' claims 3,000,000,000 numbers") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)

    def test_shift_without_end(self, exported, tmp_path):
        def shift(program):
            given = [
                {"name": n, "arg": {"as_int": v}, "kind": 1} for n, v in (("a", 1), ("b", 2**30))
            ]
            node = {"target": "_operator.lshift", "inputs": given, "metadata": {}}
            node |= {"outputs": [{"as_sym_int": {"as_name": "z"}}]}
            program["graph_module"]["graph"]["nodes"].insert(
                0, node | {"is_hop_single_tensor_return": None}
            )

        path = changed(exported, tmp_path, "models/model.json", shift)
        network = load_model(path).module
        with pytest.raises(RefusedError, match="lshift by 1073741824"):
            network(torch.ones(1, 1, 4, 4, 4))

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("lshift", (1, 65)),
            ("pow", (2, 65)),
            ("pow", (2**40, 2)),
            ("mul", (2**32, 2**32)),
            ("add", (2**63, 2**63)),
            ("mul", ([1], 10)),
            ("add", ("a", "b")),
            ("mod", ("%9d", 1)),
        ],
    )
    def test_arithmetic_has_bounds(self, name, values):
        with pytest.raises(RefusedError):
            operation(f"_operator.{name}")(*values)

    def test_arithmetic_within_bounds(self):
        values = {"lshift": 24, "pow": 27, "mul": 9, "add": 6, "floordiv": 1, "mod": 0, "sub": 0}
        for name, value in values.items():
            assert operation(f"_operator.{name}")(3, 3) == value
        assert operation("_operator.pow")(2.0, -1) == 0.5

    @pytest.mark.parametrize(
        "name",
        [
            *("_nested_view_from_buffer", "_nested_view_from_buffer_copy"),
            *("_nested_view_from_jagged", "_nested_view_from_jagged_copy", "_cummax_helper"),
            *("_reshape_alias", "segment_reduce", "_convert_indices_from_csr_to_coo"),
            *("max_pool2d_with_indices_backward", "_wrapped_quantized_linear_prepacked"),
        ],
    )
    def test_operations_that_check_no_memory(self, name):
        overload = getattr(torch.ops.aten, name).overloads()[0]
        with pytest.raises(RefusedError):
            operation(f"torch.ops.aten.{name}.{overload}")

    def test_strides_are_checked_by_torch(self):
        as_strided = operation("torch.ops.aten.as_strided.default")
        with pytest.raises(RuntimeError, match="out of bounds"):
            as_strided(torch.ones(4), [5], [1])


def test_state_dict_of_the_library_is_as_before(tmp_path):
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    torch.save({"state_dict": network.state_dict(), "o": OrderedDict(a=1)}, p := tmp_path / "n.pt")
    content = reads(p)
    assert "_metadata" in vars(content["state_dict"])
    (tensors,) = weight_sets(content).values()
    torch.testing.assert_close(dict(tensors), dict(network.state_dict()))
