"""What becomes of requests before workers get them: their turn, memory for their bodies, pictures and texts decoded."""
