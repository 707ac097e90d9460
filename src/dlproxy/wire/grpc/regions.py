"""The methods of Triton's shared memory extensions over gRPC. Called by services.py.

Not aware of: what is done with regions, and how tensors in them are used (oip.py).
"""

from typing import Any

from dlproxy.protos.oip import SERVICE, oip
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.parsing import parsed
from dlproxy.wire.grpc.server import Methods, Unary
from dlproxy.wire.regions import Regions, RegionTakenError
from dlproxy.wire.regions_http import cuda_status, no_cuda


def region_methods(regions: Regions) -> Methods:
    """Of inference.GRPCInferenceService."""

    def status(call: Call, message: bytes) -> None:
        answer = oip.SystemSharedMemoryStatusResponse()
        for region in regions.status(parsed(oip.SystemSharedMemoryStatusRequest, message).name):
            entry = answer.regions[region.name]
            entry.name, entry.key, entry.offset, entry.byte_size = region.name, region.key, region.offset, region.byte_size
        call.reply(answer.SerializeToString())

    def register(call: Call, message: bytes) -> None:
        asked = parsed(oip.SystemSharedMemoryRegisterRequest, message)
        try:
            regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        except RegionTakenError as taken:
            call.end(Status.ALREADY_EXISTS, taken.failure.message)
        else:
            call.reply()

    def unregister(call: Call, message: bytes) -> None:
        regions.unregister(parsed(oip.SystemSharedMemoryUnregisterRequest, message).name)
        call.reply()

    def show_cuda(call: Call, message: bytes) -> None:
        cuda_status(regions, parsed(oip.CudaSharedMemoryStatusRequest, message).name)
        call.reply()

    def register_cuda(call: Call, message: bytes) -> None:
        raise no_cuda(parsed(oip.CudaSharedMemoryRegisterRequest, message).name)

    def unregister_cuda(call: Call, message: bytes) -> None:
        parsed(oip.CudaSharedMemoryUnregisterRequest, message)
        call.reply()

    methods: dict[str, Any] = {
        "SystemSharedMemoryStatus": status,
        "SystemSharedMemoryRegister": register,
        "SystemSharedMemoryUnregister": unregister,
        "CudaSharedMemoryStatus": show_cuda,
        "CudaSharedMemoryRegister": register_cuda,
        "CudaSharedMemoryUnregister": unregister_cuda,
    }
    unary: dict[bytes, Unary] = {f"{SERVICE}/{name}".encode(): method for name, method in methods.items()}
    return Methods(unary, {})
