"""What can be said of a checkpoint: examined, tried on small inputs, put into words."""
