"""What makes a step faster or smaller: attention, quantised layers, CUDA graphs, oneDNN. May import runs, config and core."""
