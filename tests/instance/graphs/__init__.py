"""Random small ONNX graphs, and a judge that compares what dlproxy serves of them with ONNX Runtime alone."""
