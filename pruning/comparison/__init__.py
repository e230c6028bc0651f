"""What ``sensai compare`` makes: which points there are, and their networks."""
