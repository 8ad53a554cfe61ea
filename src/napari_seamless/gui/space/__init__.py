"""Where things are: axes, positions in the world, what the viewer shows."""
