"""Training: objectives, optimizer, the step, checkpoints and the loop over them."""
