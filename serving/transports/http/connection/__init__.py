"""One connection: its bytes become requests that are bounded, take turns, and are answered at once where possible."""
