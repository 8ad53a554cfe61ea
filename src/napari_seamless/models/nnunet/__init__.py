"""nnU-Net v2 folders: plans, folds, and the settings of its own inference."""
