"""The small trained model: a text-to-image latent diffusion model of coloured shapes, made entirely by this
project.

Laptop data: the Serve application treats the `weights` folder like any other model folder and never imports
this package.
"""
