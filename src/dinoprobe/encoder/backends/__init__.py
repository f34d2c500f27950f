"""What runs the folded forward: torch itself, OpenVINO or ONNX Runtime, in a class of precision.

`choice` names what is to be tried, in order; `graphs` builds one of them for a size of image;
`selftest` compares it with plain transformers in float32 before it is used.
"""
