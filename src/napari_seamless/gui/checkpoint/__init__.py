"""The part of the form about the checkpoint, and opening it."""
