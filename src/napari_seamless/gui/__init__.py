"""The plugin: with the demo, the only folder that imports Qt, magicgui or napari."""
