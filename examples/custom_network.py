"""A network of your own, with two heads and an output that is smaller than its input.

    python examples/custom_network.py

Its convolution is a valid one: it cuts off a voxel on each side. The first batch shows that, and
the whole volume is covered all the same. Its heads are known filters here, so that the result can
be checked; put your own network in place of `Network`.
"""

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from torch import nn

import napari_seamless as ns
from napari_seamless.demo.volume import demo_volume

CONFIG = ns.InferenceConfig(
    patch_size=(6, 34, 34), overlap=0.25, head="smooth", batch_size=4, device="cpu"
)


class Network(nn.Module):
    """Returns the mean of 3 x 3 x 3 voxels, and how far a voxel is from it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Conv3d(1, 1, 3, bias=False)
        nn.init.constant_(self.mean.weight, 1 / 27)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return two heads (B, 1, Z - 2, Y - 2, X - 2) by name."""
        smooth = self.mean(image)
        return {"smooth": smooth, "texture": (image[..., 1:-1, 1:-1, 1:-1] - smooth).abs()}


def main() -> None:
    """Predict a volume, and compare with the filter run over all of it."""
    raw, _ = demo_volume((12, 96, 96))
    prediction = ns.predict(raw, Network(), CONFIG, progress=False)

    # `head` names the one to show; all are blended in the same pass.
    for name, array in prediction.outputs[0].items():
        print(name, array.shape)

    expected = uniform_filter(raw / np.float32(255), 3)
    inside = np.s_[1:-1, 1:-1, 1:-1]  # at its edge the volume is continued, each in its own way
    np.testing.assert_allclose(prediction.array[0][inside], expected[inside], atol=1e-5)
    print("the blended patches are what one pass over the volume gives")


if __name__ == "__main__":
    main()
