"""The engine: patches, blending and the run; it knows no viewer and no file format."""
