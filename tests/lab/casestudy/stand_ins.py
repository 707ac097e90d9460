"""Models that know nothing and studies that were never run, for tests of what is done with real ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import helper

from dlproxy.lab.casestudy.day import Kind, make_day
from dlproxy.lab.casestudy.record import DayRecord, Study, Turn
from dlproxy.lab.casestudy.replay import NONE, REFUSED
from dlproxy.lab.casestudy.steps import NAMES, WHOLE, Goods
from dlproxy.message import DType
from tests import models

CATEGORIES = 14
LENGTH_S = 20.0


def network(path: Path, seed: int) -> Path:
    """Probabilities of a random layer on the pixels' means in squares of 8."""
    weights = np.random.default_rng(seed).normal(size=(3 * 8 * 8, CATEGORIES)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["squares"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["squares"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    inputs = [models.value("image", DType.FP32, ["n", 3, 64, 64])]
    outputs = [models.value("probabilities", DType.FP32, ["n", CATEGORIES])]
    return models.save(models.model(nodes, inputs, outputs, [models.constant("weights", weights)]), path)


def goods(folder: Path) -> Goods:
    names = ("classifier", "classifier-int8", "light", "partner-a", "partner-b")
    first, compressed, light, *partners = (network(folder / f"{name}.onnx", seed) for seed, name in enumerate(names))
    accuracy = {"classifier": 0.9, "compressed": 0.89, "light": 0.85}
    return Goods(
        classifier=first, compressed=compressed, light=light, partners=tuple(partners), accuracy=accuracy, threshold=0.2
    )


def day_record(seed: int = 1, *, busiest_rps: float = 100.0) -> DayRecord:
    day = make_day(mean_rps=0.4 * busiest_rps, length_s=LENGTH_S, seed=seed)
    return DayRecord(
        case="promotion",
        started="2026-01-01T00:00:00+00:00",
        machine={"dlproxy": "0"},
        cores=2,
        seed=seed,
        length_s=day.length_s,
        sale_s=day.sale_s,
        mean_rps=day.mean_rps,
        busiest_rps=busiest_rps,
        objective_ms=100.0,
        service_ms={"pixels": 2.0, "classifier": 10.0, "compressed": 5.0},
        at_s=day.at_s.tolist(),
        kind=day.kind.tolist(),
        picture=day.picture.tolist(),
        right=(day.picture % CATEGORIES).tolist(),
    )


def turn(day: DayRecord, side: str, number: int, *, calm_ms: float, sale_in_time: float, wrong: float) -> Turn:
    """Of requests before the sale all are answered in so many milliseconds, of those in it a share, and the others refused; of
    the pictures a share is taken for something else.
    """
    random = np.random.default_rng((number, sum(side.encode())))
    at_s, right, picture = np.array(day.at_s), np.array(day.right), np.array(day.picture)
    answered = (at_s < day.sale_s[0]) | (random.random(at_s.size) < sale_in_time)
    mistaken = random.random(picture.max() + 1) < wrong
    answer = np.where(mistaken[picture], (right + 1) % CATEGORIES, right)
    answer = np.where(answered, answer, np.where(np.array(day.kind) == Kind.BOT, REFUSED, NONE))
    latency_ms = np.where(answered, calm_ms * random.uniform(0.9, 1.1, at_s.size), -1.0)
    return Turn(
        round=number,
        side=side,
        steps=sorted(NAMES[:-1]) if side == WHOLE else [],
        latency_ms=latency_ms.tolist(),
        answer=answer.tolist(),
        variants={},
        errors={},
        said={},
        others=0.0,
        cores=[1.0] * int(day.length_s),
        rows={"pixels": int(answered.sum()), "classifier": int(answered.sum())},
        hits=0,
        decisions=[(17.0, "classifier", "degrades <now>")] if side != "FastAPI" else [],
        generator_share=0.1,
        late_p99_ms=1.0,
    )


def study(sides: Sequence[str] = ("FastAPI", "dlproxy", "all steps"), rounds: int = 3) -> Study:
    """In which each side is better than the one before."""
    day = day_record()
    turns = [
        turn(day, side, number, calm_ms=40.0 / (place + 1), sale_in_time=0.2 + 0.3 * place, wrong=0.12 / (place + 1))
        for number in range(rounds)
        for place, side in enumerate(sides)
    ]
    return Study(day=day, turns=turns)
