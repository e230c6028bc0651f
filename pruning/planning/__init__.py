"""Plans a run: the recipe with everything that it names loaded, and the networks that it asks for."""
