"""What a run shows while it trains: step log, trackers, validation loss and images. Imports caching and the files of training."""
