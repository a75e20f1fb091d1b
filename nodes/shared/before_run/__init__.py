"""What can be said about a run before its graph runs: which dataset it will get, and which widgets would correct a problem."""
