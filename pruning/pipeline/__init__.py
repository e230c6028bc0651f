"""Makes the networks of a run: teacher logits, cut, retrain, and resume where it was stopped."""
