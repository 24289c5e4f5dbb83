"""Models to and from other programs: ONNX, the official release, diffusers.

Each module needs packages of its own, which are extras of this package; none is imported here.
"""
