"""What makes a step faster or smaller: attention, quantised layers, CUDA graphs, oneDNN. May import core, config and families."""
