"""The plugin: the only folder that imports Qt, magicgui or napari."""
