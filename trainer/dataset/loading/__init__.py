"""What a run takes from prepared datasets: combined, balanced, split, in which order, with which captions. Imports manifest."""
