"""raynest: from an Alibaba Cloud account (or a laptop) to batches of generated images."""
