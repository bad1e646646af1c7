"""What runs ON the Ray cluster: the Serve application that paints images.

This package imports nothing else of the project. Its `*.py` files are shipped alone, as one ConfigMap on
PYTHONPATH, to a stock Ray image with torch and diffusers installed, so it may not read package data either.
Importing a module here costs no torch: the model libraries load inside the replica that paints.
"""
