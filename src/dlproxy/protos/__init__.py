"""Messages of gRPC services that dlproxy speaks and of other servers' configurations, by their published names and numbers.

Imported where a gRPC address or such a configuration is used, by nothing that every server loads.
"""
