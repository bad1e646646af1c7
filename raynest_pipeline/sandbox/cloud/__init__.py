"""Alibaba Cloud as seen on the wire: Compute Nest, CS, VPC, ECS, RAM, ROS and STS.

`gateway` answers requests, one module per product says what, `engine` lets time pass, `world` is what exists.
"""
