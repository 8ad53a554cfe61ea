"""Runs in the viewer: asked for, started, shown, ended, exported."""
