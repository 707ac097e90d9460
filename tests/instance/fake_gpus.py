"""ONNX Runtime on a machine with GPUs, by a fake: sessions compute on the CPU and say that they are where they should be."""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from dlproxy.instance.runtime import onnx
from dlproxy.instance.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, OPENVINO_PROVIDER, TENSORRT_PROVIDER

Providers = Sequence[tuple[str, Mapping[str, str]]]


class FakeGpus:
    """Two GPUs and every provider, until a test changes that. `opened`: the providers of each session that was made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gpus = 2
        self.available = [TENSORRT_PROVIDER, CUDA_PROVIDER, OPENVINO_PROVIDER, CPU_PROVIDER]
        self.left_out: set[str] = set()
        """Providers that cannot be used, which ONNX Runtime does not say."""
        self.raises: dict[str, Exception] = {}
        self.missing_library = ""
        self.opened: list[Providers] = []
        self._real = onnx.ort.InferenceSession
        patch.setattr(onnx, "_gpus", lambda: self.gpus)
        for remembered in (onnx._preload_cuda, onnx._warn):  # what is known of the real machine does not hold here
            patch.setattr(onnx, remembered.__name__, cache(remembered.__wrapped__))
        patch.setattr(onnx.ort, "get_available_providers", lambda: self.available)
        patch.setattr(onnx.ort, "preload_dlls", self._preload, raising=False)
        patch.setattr(onnx.ort, "InferenceSession", self._open)

    def _preload(self) -> None:
        if self.missing_library:
            sys.stdout.write(f"Failed to load {self.missing_library}: no such file\nPlease follow the instructions\n")

    def _open(self, path: str, options: Any, *, providers: Providers, enable_fallback: bool) -> Any:
        assert not enable_fallback, "with it ONNX Runtime goes on, on the CPU, and prints a banner"
        self.opened.append(providers)
        names = [name for name, _ in providers]
        assert names[-1] == CPU_PROVIDER, "for operators that the others lack"
        assert set(names) <= set(self.available), "ONNX Runtime warns of those that it does not have"
        for name in names:
            if name in self.raises:
                raise self.raises[name]
        session = self._real(path, options, providers=[CPU_PROVIDER])
        session.get_providers = lambda: [name for name in names if name not in self.left_out]
        return session
