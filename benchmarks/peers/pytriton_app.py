"""PyTriton: NVIDIA Triton with dynamic batching, calling Python once a batch. Run by the benchmark: `-m ... MODEL PORT`."""

import os
import sys
import sysconfig

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers import MAX_BATCH
from benchmarks.peers.onnx_session import Rows, open_session


def main(model: str, port: int) -> None:
    session = open_session(model)

    @batch
    def infer(**inputs: Rows) -> dict[str, Rows]:
        return {session.output_name: session.run(inputs[session.input_name])}

    # No delay: a batch is whatever waits when the model is free, what Triton's documentation says to start from.
    # https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/batcher.html
    config = ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0))
    server = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False, exit_timeout_secs=1)
    with Triton(config=server) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[Tensor(name=session.input_name, dtype=np.float32, shape=session.item_shape)],
            outputs=[Tensor(name=session.output_name, dtype=np.float32, shape=session.answer_shape)],
            config=config,
        )
        triton.serve()


if __name__ == "__main__":
    # Triton's Python stub takes the first libpython that the loader finds, but the standard library of this interpreter:
    # they must be of one version.
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(
        filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")))
    )
    main(sys.argv[1], int(sys.argv[2]))
