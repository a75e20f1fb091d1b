"""Anima: a Cosmos-Predict2 transformer, Qwen3 with an adapter over T5 tokens, Qwen-Image's VAE. Imported by the registry."""
