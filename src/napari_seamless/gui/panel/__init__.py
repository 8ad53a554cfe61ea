"""The form: its sections, fields and lines."""
