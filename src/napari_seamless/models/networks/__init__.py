"""Networks from their names and arguments, or guessed from the tensors of a file."""
