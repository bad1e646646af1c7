"""The RayService: its manifest, its status, why it is not ready, and reads of what it serves."""
