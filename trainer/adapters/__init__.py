"""The adapters that are trained: layers, names, initial weights, norms, average. May import compute, families, lorafile and below."""
