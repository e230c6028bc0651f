"""The offline side: profile a trained network, assign its classes to workers, cut a subnet for each, retrain it."""
