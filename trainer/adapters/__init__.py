"""The adapters that are trained: layers, names, initial weights, norms, moving average."""
