"""Messages of gRPC services that dlproxy speaks and of other servers' configurations, by their published names and numbers.

Imported by whatever speaks gRPC or reads such a configuration.
"""
