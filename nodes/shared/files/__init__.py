"""Where the pack reads and writes inside ComfyUI, saved steps of runs, images. May import inputs."""
