"""Why a voxel is as it is."""
