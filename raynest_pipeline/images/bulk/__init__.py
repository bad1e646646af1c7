"""A batch as a Ray Job on the cluster itself: what is sent there, what runs there, and who watches it."""
