"""What a run will do and need, worked out before it starts: its opened inputs, memory preset, plan and memory check. May import the rooms
below it."""
