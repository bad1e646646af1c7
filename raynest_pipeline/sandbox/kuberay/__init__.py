"""KubeRay's operator, the kubelet and the scheduler, played over a real local Ray.

Control flow: `operator` ticks `kubelet` (pods become Ray processes), `rayclusters` (RayCluster to pods and
services), `endpoints` (pods to Endpoints) and `rayservices` (RayService to RayCluster and Serve application).
"""
