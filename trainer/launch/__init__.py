"""The parent's side of a run: preparing it, starting the training child, following and stopping it, explaining its failure. May import
everything below it but training."""
