"""Settings remembered, saved, loaded, and as a command line."""
