"""Where voxels come from and where predictions go: files of several formats, and arrays."""
