"""Finding images and what lies beside them in folders and archives."""
