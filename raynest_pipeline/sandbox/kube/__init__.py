"""A small, faithful Kubernetes API server on loopback: TLS, apply, watch, proxy, garbage collection.

Its answers are held against recordings of kube-apiserver 1.36 with KubeRay's CRDs. It is an emulator, and
leaves out what neither raynest nor everyday kubectl needs: exec, kubectl's own port-forward (SPDY), protobuf
bodies (kubectl sends them for `create namespace` and its like; `apply` is JSON), RBAC objects (one is an
administrator or nobody), CEL rules, admission webhooks, quotas, aggregated discovery, rewriting of links in
proxied HTML.
"""
