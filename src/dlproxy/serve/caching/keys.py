"""What two requests of one version of a model have in common if one answer suits both: a digest of all that the answer depends
on. Called by layer.py and rows.py. Not aware of: what is kept under a key, other models.
"""

from collections.abc import Callable, Sequence
from struct import pack

from xxhash import xxh3_128, xxh3_128_digest

from dlproxy.message import DType, Request, Signature, Tensor

Key = bytes  # 16 bytes


class Keys:
    """Inputs by their bytes, shapes and order, outputs by which are asked for. Ids, deadlines and encodings do not count.

    `seed`: secret, 64 bits. xxh3 is no cryptographic hash: who knew the seed could make two inputs with one key.
    """

    def __init__(self, signature: Signature, seed: int, *, per_tenant: bool = False) -> None:
        self.reseed(seed)
        self._all = tuple(range(len(signature.outputs)))
        self._per_tenant = per_tenant
        self._plain = not per_tenant and len(signature.inputs) == 1 and _one_shape(signature)

    def reseed(self, seed: int) -> None:
        """From now on; keys that were made before are nothing any more."""
        self._seed = seed
        self._seed_of_parts = seed ^ 1  # what is hashed with a head never meets what is hashed without one

    def __call__(self, request: Request) -> Key:
        outputs = request.outputs
        if self._plain and (outputs is self._all or tuple(outputs) == self._all):
            return xxh3_128_digest(request.inputs[0].data, self._seed)
        return self._of_parts(request.inputs, outputs, request.ticket.tenant if self._per_tenant else "")

    def _of_parts(self, inputs: Sequence[Tensor], outputs: Sequence[int], tenant: str) -> Key:
        name = tenant.encode()
        head = [len(name), len(outputs), *outputs]
        for tensor in inputs:
            head += (len(tensor.shape), *tensor.shape, len(tensor.data))
        digest = xxh3_128(pack(f"<{len(head)}q", *head) + name, self._seed_of_parts)
        for tensor in inputs:
            digest.update(tensor.data)
        return digest.digest()


def _one_shape(signature: Signature) -> bool:
    """Whether the number of bytes says what the shape is."""
    spec = signature.inputs[0]
    open_axes = sum(size < 0 for size in spec.shape)
    return spec.dtype is not DType.BYTES and 0 not in spec.shape and open_axes <= 1


MakeKey = Callable[[Request], Key]
