"""LoRAs on a model: apply them, with which adapters, the rows of a stack, cards for the browser. May import files and inputs."""
