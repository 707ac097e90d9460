"""What the Open Inference Protocol tells about the server and its models: metadata, configuration, statistics, index.

Field names are those of Triton's model_config.proto and statistics extension. Called by oip/http.py and grpc/oip.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from dlproxy.config import ModelConfig
from dlproxy.message import DType, FailureKind, Principal, TensorSpec
from dlproxy.telemetry.stats import BatchSize, Histogram, Part, StreamStats
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.rights import seen

EXTENSIONS = (
    *("classification", "sequence", "model_repository", "model_configuration"),
    *("binary_tensor_data", "parameters", "statistics"),
)


def welcome(models: Iterable[ServedModel], version: str) -> dict[str, Any]:
    """For whoever opens the server's address in a browser. `status`: what clients of KServe's V1 look for."""
    return {
        "name": "dlproxy",
        "version": version,
        "status": "alive",
        "models": [model.name for model in models],
        "try": [
            "/v2/models/{model}",
            "POST /v2/models/{model}/infer",
            "POST /predict/{model}",
            "POST /v1/models/{model}:predict",
        ],
    }


def server(version: str, *, more: Sequence[str] = ()) -> dict[str, Any]:
    """`more`: extensions that not every server has."""
    return {"name": "dlproxy", "version": version, "extensions": [*EXTENSIONS, *more]}


def metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    signature = model.signature
    return {
        "name": model.name,
        "versions": versions,
        "platform": signature.platform,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def config(model: ServedModel) -> dict[str, Any]:
    """ModelConfig as JSON; as in Triton, `dims` leave out the batch dimension of a model that batches."""
    signature = model.signature
    platform, backend = (
        signature.platform,
        signature.platform.partition("_")[0],
    )  # as Triton names them: pytorch of pytorch_libtorch
    described: dict[str, Any] = {
        "name": model.name,
        "platform": "" if platform == backend else platform,
        "backend": backend,
        "version_policy": {"specific": {"versions": [int(model.version)]}},
        "max_batch_size": model.max_batch if signature.batched else 0,
        "input": [
            {**_io(spec, batched=signature.batched), **({"optional": True} if spec.default is not None else {})}
            for spec in signature.inputs
        ],
        "output": [_io(spec, batched=signature.batched) for spec in signature.outputs],
    }
    if signature.batched and not signature.sequences:  # Triton has one of them
        described["dynamic_batching"] = {"max_queue_delay_microseconds": round(max_wait_s(model) * 1e6)}
    if signature.streams:
        described["model_transaction_policy"] = {"decoupled": True}
    if signature.sequences:
        described["sequence_batching"] = sequence_batching(model)
    if model.stats.cache is not None:
        described["response_cache"] = {"enable": True}
    if model.pipeline is not None and (steps := ensemble_steps(model.pipeline)):
        described |= {"platform": "ensemble", "backend": "", "ensemble_scheduling": {"step": steps}}
    return described


def ensemble_steps(pipeline: ModelConfig) -> list[dict[str, Any]]:
    """As Triton's ensembles have them; none where the pipeline does more than these do."""
    steps, tensors = pipeline.steps, {source: name for name, source in pipeline.outputs.items()}
    sources = [source for step in steps.values() for source in step.inputs.values()]
    if len(tensors) < len(pipeline.outputs) or any("|" in source for source in (*sources, *tensors)):
        return []
    found = []
    for name, step in steps.items():
        model, _, version = step.model.partition(":")
        if not model or step.each or step.when or step.need or not (version or "1").isdecimal():
            return []
        given = dict.fromkeys(one for one in (*sources, *tensors) if one not in pipeline.inputs and one.startswith(f"{name}."))
        found.append(
            {
                "model_name": model,
                "model_version": int(version or -1),
                "input_map": {key: tensors.get(source, source) for key, source in step.inputs.items()},
                "output_map": {source.partition(".")[2]: tensors.get(source, source) for source in given},
            }
        )
    return [] if any(source in pipeline.inputs for source in tensors) else found


def sequence_batching(model: ServedModel) -> dict[str, Any]:
    """What clients of Triton look for; the inputs that the server fills are none of theirs."""
    knobs = {} if model.control is None else model.control.state()["knobs"]
    idle_us = round(knobs.get("sequence_idle_s", 0.0) * 1e6)
    return {"max_sequence_idle_microseconds": idle_us, model.signature.sequences: {}}


def max_wait_s(model: ServedModel) -> float:
    """The knob as it is now, since it may change while the model runs."""
    return 0.0 if model.control is None else model.control.state()["knobs"]["max_wait_s"]


def statistics_of(catalog: Catalog, who: Principal, name: str = "", version: str = "") -> dict[str, Any]:
    """Of one version, else of all versions of one model, else of all models that `who` may see. Raises InferenceError."""
    models = seen(catalog, who)
    if name:
        models = [catalog.up(name, found, who) for found in ([version] if version else catalog.versions(name) or [""])]
    return {"model_stats": [_model_stats(model) for model in models]}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype.value, "shape": spec.shape}


def _io(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    name = "TYPE_STRING" if spec.dtype is DType.BYTES else f"TYPE_{spec.dtype.value}"
    return {"name": spec.name, "data_type": name, "dims": spec.shape[1:] if batched and spec.rows == 0 else spec.shape}


def _model_stats(model: ServedModel) -> dict[str, Any]:
    stats = model.stats
    stats.settle()
    failures, cache = sum(stats.failures.values()), stats.cache
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": stats.last_at_ms,
        "inference_count": stats.rows,
        "execution_count": stats.batches,
        "inference_stats": {
            "success": _durations(stats.request),
            "fail": {"count": failures, "ns": _ns(stats.failed_s)},
            "queue": _durations(stats.queue),
            "compute_input": _durations(stats.batch),
            "compute_infer": _durations(stats.compute),
            "compute_output": _durations(stats.split),
            "cache_hit": {"count": 0 if cache is None else cache.hits, "ns": 0 if cache is None else _ns(cache.hit_s)},
            "cache_miss": {"count": 0 if cache is None else cache.misses, "ns": 0 if cache is None else _ns(cache.miss_s)},
        },
        "response_stats": {} if stats.streams is None else _response_stats(stats.streams),
        "batch_stats": [_batch_stats(rows, size) for rows, size in sorted(stats.batch_sizes.items())],
        "memory_usage": [],
        "failures": {kind.value: stats.failures[kind] for kind in FailureKind if stats.failures[kind]},
    }


def _response_stats(streams: StreamStats) -> dict[str, Any]:
    """By the number of the response. As in Triton, what ends an answer is a response, too, an empty one."""
    return {str(number): _of_response(part) for number, part in enumerate(streams.places)}


def _of_response(part: Part) -> dict[str, Any]:
    compute, split = _ns(part.compute_s), _ns(part.split_s)
    return {
        "compute_infer": {"count": part.sent, "ns": compute},
        "compute_output": {"count": part.sent, "ns": split},
        "success": {"count": part.sent, "ns": compute + split},
        "fail": {"count": part.failed, "ns": 0},
        "empty_response": {"count": part.ended, "ns": 0},
        "cancel": {"count": part.left, "ns": 0},
    }


def _batch_stats(rows: int, size: BatchSize) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": {"count": size.batches, "ns": _ns(size.batch_s)},
        "compute_infer": {"count": size.batches, "ns": _ns(size.compute_s)},
        "compute_output": {"count": size.batches, "ns": _ns(size.split_s)},
    }


def _durations(histogram: Histogram) -> dict[str, int]:
    return {"count": histogram.count, "ns": _ns(histogram.total_s)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
