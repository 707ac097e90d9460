"""Services that gRPC servers have beside their own: `grpc.health.v1.Health` and `ServerReflection`, of v1 and v1alpha.

Called by wire/grpc. Names and numbers: health.proto and reflection.proto of grpc/grpc-proto.
"""

from types import SimpleNamespace

from dlproxy.protos.describe import BYTES, INT32, STRING, Values, choice, many, messages, one

HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.{}.ServerReflection"
VERSIONS = ("v1", "v1alpha")  # of reflection: the messages are the same
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)  # HealthCheckResponse.ServingStatus

_STATUS = Values(UNKNOWN=UNKNOWN, SERVING=SERVING, NOT_SERVING=NOT_SERVING, SERVICE_UNKNOWN=SERVICE_UNKNOWN)

health = messages(
    {
        "grpc.health.v1": {
            "HealthCheckRequest": {"service": one(1, STRING)},
            "HealthCheckResponse": {"status": one(1, "enum grpc.health.v1.HealthCheckResponse.ServingStatus")},
            "HealthCheckResponse.ServingStatus": _STATUS,
        }
    }
)


def _reflection(package: str) -> SimpleNamespace:
    return messages(
        {
            package: {
                "ServerReflectionRequest": {
                    "host": one(1, STRING),
                    **choice(
                        "message_request",
                        file_by_filename=one(3, STRING),
                        file_containing_symbol=one(4, STRING),
                        file_containing_extension=one(5, f"{package}.ExtensionRequest"),
                        all_extension_numbers_of_type=one(6, STRING),
                        list_services=one(7, STRING),
                    ),
                },
                "ExtensionRequest": {"containing_type": one(1, STRING), "extension_number": one(2, INT32)},
                "ServerReflectionResponse": {
                    "valid_host": one(1, STRING),
                    "original_request": one(2, f"{package}.ServerReflectionRequest"),
                    **choice(
                        "message_response",
                        file_descriptor_response=one(4, f"{package}.FileDescriptorResponse"),
                        all_extension_numbers_response=one(5, f"{package}.ExtensionNumberResponse"),
                        list_services_response=one(6, f"{package}.ListServiceResponse"),
                        error_response=one(7, f"{package}.ErrorResponse"),
                    ),
                },
                "FileDescriptorResponse": {"file_descriptor_proto": many(1, BYTES)},
                "ExtensionNumberResponse": {"base_type_name": one(1, STRING), "extension_number": many(2, INT32)},
                "ListServiceResponse": {"service": many(1, f"{package}.ServiceResponse")},
                "ServiceResponse": {"name": one(1, STRING)},
                "ErrorResponse": {"error_code": one(1, INT32), "error_message": one(2, STRING)},
            }
        }
    )


reflection = {version: _reflection(f"grpc.reflection.{version}") for version in VERSIONS}
