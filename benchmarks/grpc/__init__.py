"""Benchmark of gRPC: dlproxy beside a bare grpc.aio server and a real Triton."""
