"""Batches of images: prompts in, verified PNGs and a manifest out."""
