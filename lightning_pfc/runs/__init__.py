"""What a run folder holds for whoever uses the model: the network, the words, the data, the thresholds."""
