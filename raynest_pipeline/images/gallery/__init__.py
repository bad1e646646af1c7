"""The gallery: a static page for each batch, one over all of them, and a loopback server that shows them."""
