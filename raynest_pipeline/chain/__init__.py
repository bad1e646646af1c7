"""The chain of links: cluster -> public_ip -> kubeconfig -> ray_service. Knows nothing of Dagster."""
