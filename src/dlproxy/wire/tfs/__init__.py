"""TensorFlow Serving's REST API and KServe's V1, which shares its paths; what its gRPC door shares with them."""
