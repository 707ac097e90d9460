"""gRPC at the edge: HTTP/2 connections, calls, and the services that stand on them."""
