"""`raynest`: a thin front to the same jobs that the Dagster UI starts.

Exit codes: 0 done; 1 unexpected; 2 wrong settings, arguments or input; 3 credentials or permission;
4 refused before anything was bought or deleted; 5 not ready; 6 images failed; 7 unreachable; 8 storage;
130 interrupted.
"""

from raynest_pipeline.cli.app import main

__all__ = ["main"]
