"""From a kubeconfig to a Kubernetes client, and what is put on the cluster with it."""
