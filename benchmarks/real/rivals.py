"""The servers that MiniLM is measured beside, set up in the ways that suit two cores or more, its documentation's among them.

Server programs and environments are those of benchmarks/peers. Not aware of: how they are measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness.report import Goal
from benchmarks.peers.__main__ import PEERS_BY_NAME
from benchmarks.peers.registry import DLPROXY, Launch, System
from benchmarks.real.tokens import OipTokens, OpenAiText

BATCHES = (1, 8)


@dataclass(frozen=True)
class Rival:
    """One server: `goal` is how many times its rate dlproxy shall reach; `documented`: the way that its documentation shows."""

    name: str
    goal: Goal
    ways: tuple[System, ...]
    documented: System


def dlproxy() -> System:
    """Without any configuration."""
    return replace(DLPROXY, format=OipTokens(), batching="no configuration at all", command=_dlproxy_command)


def rivals(cores: int, texts: Mapping[bytes, str], folder: Path) -> list[Rival]:
    """`folder`: the model as Hugging Face lays it out, for servers that take text."""
    litserve, bentoml = (_batching(PEERS_BY_NAME[name], cores) for name in ("litserve", "bentoml"))
    infinity, fastapi = _infinity(cores, texts, folder), _fastapi(PEERS_BY_NAME["fastapi"], cores)
    return [
        Rival("litserve", Goal(1.8, at_least=True), litserve, documented=litserve[1]),  # one worker that batches
        Rival("bentoml", Goal(1.8, at_least=True), bentoml, documented=bentoml[1]),
        Rival("infinity", Goal(1.2, at_least=True), infinity, documented=infinity[0]),
        Rival("fastapi", Goal(1.1, at_least=True), fastapi, documented=fastapi[0]),
    ]


def _batching(peer: System, cores: int) -> tuple[System, ...]:
    """One worker on all cores, or a worker for each; one text at a time, or padded to the longest of a batch."""
    shapes = ((1, cores), (cores, 1))
    return tuple(_way(peer, workers, threads, batch) for workers, threads in shapes for batch in BATCHES)


def _way(peer: System, workers: int, threads: int, batch: int) -> System:
    environment = (f"PEER_WORKERS={workers}", f"PEER_THREADS={threads}", f"PEER_BATCH={batch}")
    return replace(peer, environment=environment, batching=f"workers {workers}, threads {threads}, batches of at most {batch}")


def _fastapi(peer: System, cores: int) -> tuple[System, ...]:
    return (
        replace(peer, environment=(f"PEER_THREADS={cores}",), batching=f"async def, threads {cores}"),
        replace(peer, environment=("PEER_THREADS=1", "PEER_POOL=1"), batching="thread pool, threads 1"),
        replace(peer, environment=(f"PEER_THREADS={cores}", "PEER_POOL=1"), batching=f"thread pool, threads {cores}"),
    )


def _infinity(cores: int, texts: Mapping[bytes, str], folder: Path) -> tuple[System, ...]:
    def command(launch: Launch) -> list[str]:
        program = str(launch.python.with_name("infinity_emb"))
        # from inside the folder: optimum takes the name that Infinity finds there only without a path before it
        options = ["--model-id", ".", "--served-model-name", "minilm", "--engine", "optimum", "--device", "cpu"]
        options += ["--pooling-method", "mean"]
        address = ["--host", "127.0.0.1", "--port", str(launch.port), "--no-model-warmup"]
        return ["env", "-C", str(folder), str(launch.python), program, "v2", *options, *address]

    system = System(
        name="infinity",
        title="infinity",
        requirements=("infinity-emb[server,optimum]",),
        packages=("infinity_emb", "optimum", "transformers", "torch"),
        path="/embeddings",
        format=OpenAiText(texts),
        batching="batches of at most 32 (the default)",
        documentation="https://michaelfeil.github.io/infinity/",
        command=command,
        environment=(f"OMP_NUM_THREADS={cores}", "HF_HUB_OFFLINE=1", "DO_NOT_TRACK=1", "INFINITY_ANONYMOUS_USAGE_STATS=0"),
    )
    small = replace(system, batching="batches of at most 8", environment=(*system.environment, "INFINITY_BATCH_SIZE=8;"))
    return (system, small)


def _dlproxy_command(launch: Launch) -> list[str]:
    command = [str(launch.python), "-m", "dlproxy", "serve", f"model={launch.model}", "--host", "127.0.0.1"]
    return [*command, "--http-port", str(launch.port), "--control-port", "0"]
