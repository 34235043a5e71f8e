"""A checkpoint becomes a graph, the graph an artifact in fp32, fp16 or int8, and the artifact is verified."""
