"""Messages of gRPC services that dlproxy speaks, by their published names and numbers, and large byte fields around protobuf.

Needs protobuf, which comes with the extra `grpc`: imported where a gRPC address is used, by nothing that every server loads.
"""
