"""Packages of bioimage.io, written by its own library."""

import gc
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

spec = pytest.importorskip("bioimageio.spec")
v0_5 = pytest.importorskip("bioimageio.spec.model.v0_5")

LETTERS = {"b": "batch", "c": "channel"}
FREE = {"z": v0_5.ParameterizedSize(min=4, step=4)} | {
    letter: v0_5.ParameterizedSize(min=8, step=8) for letter in "yx"
}
VOLUME = {"b": None, "c": 1, **FREE}
PLANE = {"b": None, "c": 1, "y": FREE["y"], "x": FREE["x"]}


class Net(nn.Sequential):
    """Looks at neighbours, so that a wrong order of axes shows."""

    def __init__(self, dims=3, channels=1, out=2):
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        super().__init__(conv(channels, 3, 3, padding=1), nn.ReLU(), conv(3, out, 1))
        with torch.no_grad():  # the library wants results that are not small
            self[-1].bias += 2


def network(dims=3, **arguments):
    torch.manual_seed(0)
    return Net(dims, **arguments).eval()


def script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(path)


def input_axis(letter, size):
    if letter == "b":
        return v0_5.BatchAxis(size=size)
    if letter == "c":
        return v0_5.ChannelAxis(channel_names=[f"c{i}" for i in range(size)])
    return v0_5.SpaceInputAxis(id=v0_5.AxisId(letter), size=size)


def output_axis(letter, size, source="input"):
    if letter in "bc":
        return input_axis(letter, size)
    arguments = dict(size) if isinstance(size, dict) else {}
    if not isinstance(size, int):
        offset, axis = arguments.pop("offset", 0), arguments.pop("axis", letter)
        size = v0_5.SizeReference(
            tensor_id=v0_5.TensorId(source), axis_id=v0_5.AxisId(axis), offset=offset
        )
    kind = v0_5.SpaceOutputAxisWithHalo if "halo" in arguments else v0_5.SpaceOutputAxis
    return kind(id=v0_5.AxisId(letter), size=size, **arguments)


def smallest(axes):
    """Return the smallest shape of an input."""
    return tuple(
        1 if size is None else getattr(size, "min", None) or (size if isinstance(size, int) else 8)
        for size in axes.values()
    )


def same_but(axes, **others):
    """Return the axes of an output that follow those of the input, with other channels."""
    return {letter: None if letter in "bzyx" else 2 for letter in axes} | others


@contextmanager
def quiet():
    """Keep quiet what the library, torch and ONNX warn of, and files that they leave open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


class Maker:
    """Writes packages into a folder of their own, by the library that owns the format."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def file(self, name, content):
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_text(content)
        return v0_5.FileDescr(source=path)

    def weights(self, module, kinds, architecture=None):
        found = {}
        if "torchscript" in kinds:
            script(module, self.folder / "weights-script.pt")
            found["torchscript"] = v0_5.TorchscriptWeightsDescr(
                source=self.folder / "weights-script.pt", pytorch_version=v0_5.Version("2.6")
            )
        if "pytorch_state_dict" in kinds:
            torch.save(module.state_dict(), self.folder / "weights.pt")
            found["pytorch_state_dict"] = v0_5.PytorchStateDictWeightsDescr(
                source=self.folder / "weights.pt",
                pytorch_version=v0_5.Version("2.6"),
                architecture=architecture,
                **({"parent": "torchscript"} if "torchscript" in kinds else {}),
            )
        if onnx := {"onnx", "onnx of one size"} & set(kinds):
            axes = {0: "b", 2: "z", 3: "y", 4: "x"}
            torch.onnx.export(
                module,
                (torch.rand(1, 1, 4, 8, 8),),
                self.folder / "weights.onnx",
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": axes} if onnx == {"onnx"} else None,
                dynamo=False,
            )
            found["onnx"] = v0_5.OnnxWeightsDescr(
                source=self.folder / "weights.onnx",
                opset_version=17,
                **({"parent": next(iter(found))} if found else {}),
            )
        return v0_5.WeightsDescr(**found)

    def description(
        self,
        module,
        axes=VOLUME,
        outputs=None,
        weights=("torchscript",),
        architecture=None,
        before=(),
        after=(),
        dtype="float32",
        **fields,
    ):
        outputs = outputs or {"output": same_but(axes)}
        torch.manual_seed(1)
        patch = torch.rand(smallest(axes)) * (1 if dtype == "float32" else 200)
        patch = patch.to(getattr(torch, dtype))
        with torch.inference_mode():
            returned = module(patch)
        returned = [returned] if isinstance(returned, torch.Tensor) else list(returned)
        after = after if isinstance(after, dict) else dict.fromkeys(outputs, after)
        given = [
            v0_5.OutputTensorDescr(
                id=v0_5.TensorId(name),
                axes=[output_axis(letter, size) for letter, size in out.items()],
                test_tensor=self.file(f"{name}.npy", result.float().numpy()),
                postprocessing=list(after[name]),
            )
            for (name, out), result in zip(outputs.items(), returned, strict=True)
        ]
        taken = v0_5.InputTensorDescr(
            axes=[input_axis(letter, size) for letter, size in axes.items()],
            test_tensor=self.file("input.npy", patch.numpy()),
            preprocessing=list(before),
            data=v0_5.IntervalOrRatioDataDescr(type=dtype),
        )
        return v0_5.ModelDescr(
            name="Membranes of the cord",
            description="Finds membranes.",
            authors=[v0_5.Author(name="Ada L"), v0_5.Author(name="Bo M")],
            cite=[v0_5.CiteEntry(text="A paper", doi=v0_5.Doi("10.1234/abc"))],
            license=v0_5.LicenseId("MIT"),
            documentation=self.file("README.md", "# Net\n## Validation\nNone."),
            tags=["membranes", "em"],
            inputs=[taken],
            outputs=given,
            weights=self.weights(module, weights, architecture),
            **fields,
        )

    def __call__(self, module, kind="folder", **arguments):
        """Write a package of a network and return its path."""
        with quiet():
            path = self._save(module, kind, arguments)
        return description_of(path) if kind == "file" else path

    def _save(self, module, kind, arguments):
        model = self.description(module, **arguments)
        save = spec.save_bioimageio_package_as_folder
        if kind == "zip":
            save = spec.save_bioimageio_package
        return Path(save(model, output_path=self.folder / f"package.{kind}"))


def description_of(folder):
    return next(each for each in folder.iterdir() if each.suffix == ".yaml")


def rewrite(folder, change):
    """Change the description in a folder."""
    path = description_of(folder)
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return folder


def package_of_format_0_4(folder, module):
    """Write a package of the older format, as most on bioimage.io are; return its folder."""
    v0_4 = pytest.importorskip("bioimageio.spec.model.v0_4")
    folder.mkdir()
    patch = torch.rand(1, 1, 4, 8, 8)
    np.save(folder / "input.npy", patch.numpy())
    np.save(folder / "output.npy", module(patch).detach().numpy())
    (folder / "README.md").write_text("# Net\n## Validation\nNone.")
    script(module, folder / "weights-script.pt")
    with quiet():
        model = v0_4.ModelDescr(
            name="Membranes",
            description="Finds membranes.",
            authors=[v0_4.Author(name="Ada L")],
            cite=[v0_4.CiteEntry(text="A paper", doi="10.1234/abc")],
            license="MIT",
            documentation=folder / "README.md",
            timestamp="2022-01-01T00:00:00",
            config={"bioimageio": {"nickname": "kind-heron"}},
            inputs=[
                v0_4.InputTensorDescr(
                    name="raw",
                    axes="bczyx",
                    data_type="float32",
                    shape={"min": [1, 1, 4, 8, 8], "step": [0, 0, 4, 8, 8]},
                    preprocessing=[
                        {
                            "name": "zero_mean_unit_variance",
                            "kwargs": {"mode": "per_sample", "axes": "zyx"},
                        }
                    ],
                )
            ],
            outputs=[
                v0_4.OutputTensorDescr(
                    name="membranes",
                    axes="bczyx",
                    data_type="float32",
                    shape={
                        "reference_tensor": "raw",
                        "scale": [1, 0, 1, 1, 1],
                        "offset": [0, 1, 0, 0, 0],
                    },
                    halo=[0, 0, 0, 2, 2],
                    postprocessing=[{"name": "sigmoid"}],
                )
            ],
            test_inputs=[folder / "input.npy"],
            test_outputs=[folder / "output.npy"],
            weights={
                "torchscript": {
                    "source": folder / "weights-script.pt",
                    "pytorch_version": "2.6",
                }
            },
        )
        return Path(spec.save_bioimageio_package_as_folder(model, output_path=folder / "package"))
