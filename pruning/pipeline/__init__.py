"""Makes the networks of a run: plans it, cuts, trains, and resumes where it was stopped."""
