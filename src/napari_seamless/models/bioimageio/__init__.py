"""bioimage.io packages."""
