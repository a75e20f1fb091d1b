"""What a run saves: states to resume from, LoRA files, and the checks around them. Imports monitoring and the files of training."""
