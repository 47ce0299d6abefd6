"""The training loop: batches, steps, state that resumes to the same bits."""
