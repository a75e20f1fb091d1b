"""The demonstration on the embedded base model; ``drawing/`` holds what the pack uses, ``recipe/`` how the base was trained."""
