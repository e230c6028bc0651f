"""The online side: fans one input out to a bundle's workers and merges what comes back. Never imports torch."""
