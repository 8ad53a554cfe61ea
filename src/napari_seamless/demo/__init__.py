"""A generated EM-like volume, a tiny network for it, and the script that trains the network."""
