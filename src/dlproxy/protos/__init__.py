"""Messages of gRPC services that dlproxy speaks and of other servers' configurations, by their published names and numbers.

Imported where gRPC is spoken, to clients or upstreams, and where such a configuration is read.
"""
