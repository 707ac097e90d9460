"""The Open Inference Protocol over HTTP as Triton serves it, with its extensions: bodies, routes, descriptions."""
