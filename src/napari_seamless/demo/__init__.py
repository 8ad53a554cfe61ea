"""A generated EM-like volume, a tiny network for it, and the script that trains the network."""

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("demo_unet.pt")
"""TorchScript; its outputs are logits, its input is grey values / 255."""
PATCH_SIZE = (8, 96, 96)
"""Voxels that the network was trained on, (Z, Y, X)."""
