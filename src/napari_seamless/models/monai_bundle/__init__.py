"""MONAI bundles: network, weights and settings from their configuration, which is not run."""
