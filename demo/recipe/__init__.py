"""The recipe that trains the embedded base model from scratch. Nothing in the installed pack imports it."""
