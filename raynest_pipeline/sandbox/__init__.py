"""An emulator of Alibaba Cloud, of a Kubernetes API server and of KubeRay, over a real local Ray.

It stands alone: nothing here may import another part of raynest, because this is the code that is there to
contradict the rest. `raynest_pipeline.sandbox.control` starts, asks and stops it from any other process.
"""

#: Version of the sandbox's own protocol (information file, administration API and state folder).
VERSION = "1"
