"""Workers on other machines: how they are named, reached and checked, and how `sensai node` serves them."""
