"""What a run shows while it trains: step log, trackers, validation loss, validation images."""
