"""The gate takes what is shown to pay and to lose little, and says of all else what is against it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.compress import CompressError
from dlproxy.compress.gate import KEPT, Bar, Footprint, amount, bar_of, in_bytes, judge
from tests.compress.findings import accuracy, measured, speed

SMALL = Bar(most_file_bytes=200_000)
LEAN = Bar(most_memory_bytes=2_000_000)


@pytest.mark.parametrize(
    ("found", "bar", "reasons"),
    [
        ({}, Bar(), None),
        ({"accuracy": accuracy(loss=-0.01, low=-0.02, high=0.0)}, Bar(), None),
        (
            {"accuracy": accuracy(loss=0.021, low=0.012, high=0.03)},
            Bar(),
            ["loses 2.1 % of accuracy, 1 % is allowed"],
        ),
        (
            {"accuracy": accuracy(examples=300, loss=0.004, low=-0.002, high=0.018)},
            Bar(),
            ["loses 0.4 % of accuracy, but 300 held-out examples cannot show less than 1.8 %: about 1,700 would"],
        ),
        (
            {"accuracy": accuracy(examples=100, loss=0.0, low=0.0, high=0.03)},
            Bar(),
            ["loses no accuracy, but 100 held-out examples cannot show less than 3 %: about 300 would"],
        ),
        (
            {"accuracy": accuracy(metric="r2", loss=0.00999999, low=0.0, high=0.03)},
            Bar(),
            ["loses 0.01 of r2, but 2,000 held-out examples cannot show less than 0.03: more than a million would be needed"],
        ),
        ({"accuracy": accuracy(loss=float("nan"))}, Bar(), ["what it loses of accuracy is not known"]),
        (
            {"speeds": (speed(1), speed(32, ratio=0.92, low=0.9, high=0.95))},
            Bar(),
            ["0.92 times as quick at batch 32 (0.90 to 0.95), 1.15 times is asked for"],
        ),
        (
            {"speeds": (speed(1, ratio=1.3, low=0.97, high=1.6), speed(32))},
            Bar(),
            ["1.30 times as quick at batch 1 (0.97 to 1.60), which may be chance: measure it when the machine is idle"],
        ),
        ({"speeds": ()}, Bar(), ["its speed was not measured"]),
        ({}, Bar(least_ratio=2.2), ["2.10 times as quick at batch 1 (1.90 to 2.20), 2.20 times is asked for"] * 2),
        ({"speeds": (speed(1, ratio=1.0, low=0.95, high=1.05),)}, SMALL, None),
        ({"speeds": (speed(1, ratio=1.0, low=0.95, high=1.05),)}, LEAN, None),
        (
            {"speeds": (speed(1, ratio=0.95, low=0.93, high=0.99),)},
            SMALL,
            ["0.95 times as quick at batch 1 (0.93 to 0.99), which is slower"],
        ),
        (
            {"speeds": (speed(1, ratio=1.2, low=0.8, high=1.6),)},
            SMALL,
            ["1.20 times as quick at batch 1 (0.80 to 1.60), which may be chance: measure it when the machine is idle"],
        ),
        (
            {"candidate": Footprint(250_000, 0.1, 3_000_000)},
            Bar(most_file_bytes=200_000, most_memory_bytes=4_000_000),
            ["file of 250 kB, at most 200 kB is asked for", "memory of 3 MB, which is no less than the original's 3 MB"],
        ),
        ({"candidate": Footprint(1000, 0.1, 0)}, LEAN, ["what its memory takes is not known"]),
    ],
)
def test_what_is_taken_and_what_not(found: dict[str, Any], bar: Bar, reasons: list[str] | None) -> None:
    verdict = judge(measured(**found), bar)
    if reasons is None:
        assert verdict.status == "accepted"
        assert verdict.reasons
    else:
        assert verdict.status == "refused"
        assert [reason.replace("batch 32 (1.90", "batch 1 (1.90") for reason in verdict.reasons] == reasons


def test_one_that_is_taken_says_why() -> None:
    assert judge(measured(), Bar()).reasons == [
        "loses 0.1 % of accuracy on 2,000 held-out examples, and at most 0.5 % on all there are (95 % sure)",
        "2.10 times as quick at batch 1 (1.90 to 2.20)",
        "2.10 times as quick at batch 32 (1.90 to 2.20)",
    ]


def test_one_that_is_better_says_by_how_much_at_least() -> None:
    better = accuracy(loss=-0.02, low=-0.03, high=-0.01)
    assert judge(measured(accuracy=better), Bar()).reasons[0] == (
        "loses no accuracy on 2,000 held-out examples, and gains at least 1 % on all there are (95 % sure)"
    )


any_number = st.floats(allow_nan=True) | st.floats(-0.05, 0.05) | st.floats(0.8, 3.0)
any_size = st.integers(-10, 10**7)
speeds = st.lists(st.builds(speed, st.integers(1, 64), ratio=any_number, low=any_number, high=any_number), max_size=3)
bars = st.builds(
    Bar,
    most_loss=st.floats(0.001, 0.1),
    least_ratio=st.floats(1.0, 3.0),
    most_file_bytes=st.just(0) | any_size.map(abs),
    most_memory_bytes=st.just(0) | any_size.map(abs),
)
losses = st.builds(accuracy, examples=st.integers(1, 10**6), loss=any_number, low=any_number, high=any_number)
footprints = st.builds(Footprint, any_size, st.just(0.1), any_size)


@given(losses, speeds, footprints, footprints, bars)
def test_nothing_is_taken_that_is_slower_or_not_shown(
    lost: Any, found: list[Any], original: Footprint, candidate: Footprint, bar: Bar
) -> None:
    verdict = judge(measured(accuracy=lost, speeds=tuple(found), original=original, candidate=candidate), bar)
    assert verdict.reasons
    if verdict.status == "refused":
        return
    assert lost.loss <= lost.high <= bar.most_loss
    assert found
    if bar.most_file_bytes or bar.most_memory_bytes:
        assert all(one.low >= KEPT and one.high >= 1.0 for one in found)
        assert not bar.most_file_bytes or 0 < candidate.file_bytes <= bar.most_file_bytes
        assert not bar.most_memory_bytes or 0 < candidate.memory_bytes <= bar.most_memory_bytes
    else:
        assert all(one.low > 1.0 and one.ratio >= bar.least_ratio for one in found)


@pytest.mark.parametrize(
    ("target", "max_loss", "bar"),
    [
        ("", "", Bar()),
        ("2x", "1%", Bar(least_ratio=2.0)),
        ("1.5 X", "0.5 %", Bar(least_ratio=1.5, most_loss=0.005)),
        ("2\xd7", "0.02", Bar(least_ratio=2.0, most_loss=0.02)),
        ("size=1MB", "", Bar(most_file_bytes=10**6)),
        ("memory=64MB, size=1.5 MiB", ".03", Bar(most_memory_bytes=64 * 10**6, most_file_bytes=3 << 19, most_loss=0.03)),
    ],
)
def test_what_users_ask_for(target: str, max_loss: str, bar: Bar) -> None:
    assert bar_of(target=target, max_loss=max_loss) == bar


@pytest.mark.parametrize(
    ("target", "max_loss", "clue"),
    [
        ("2", "", "2x"),
        ("sise=1MB", "", "size=1MB"),
        ("size=1", "", "size=1MB"),
        ("size=0MB", "", "write more"),
        ("0.5x", "", "slower"),
        ("2x,3x", "", "twice"),
        ("2x,size=1MB", "", "for a speed or for a size"),
        ("", "1", "everything"),
        ("", "100%", "everything"),
        ("", "0", "0.1% or more"),
        ("", "-1%", "like 1% or 0.01"),
        ("", "one", "like 1% or 0.01"),
    ],
)
def test_typing_errors(target: str, max_loss: str, clue: str) -> None:
    with pytest.raises(CompressError, match=clue):
        bar_of(target=target, max_loss=max_loss)


typed = st.text("0123456789.,x%= -sizemoryKMGBb", max_size=12)


@given(typed, typed)
def test_whatever_is_typed_is_a_bar_or_a_mistake(target: str, max_loss: str) -> None:
    try:
        bar = bar_of(target=target, max_loss=max_loss)
    except CompressError:
        return
    assert bar.least_ratio >= 1.0
    assert 0.0 < bar.most_loss < 1.0


def test_values_for_people() -> None:
    assert [amount("accuracy", value) for value in (1.0, 0.99167, -0.0, -0.00001, -0.0041)] == [
        "100 %",
        "99.17 %",
        "0 %",
        "0 %",
        "-0.41 %",
    ]
    assert amount("cosine", 0.99987) == "0.9999"
    assert [in_bytes(size) for size in (0, 999, 294_125, 64_000_000, 2 * 10**9)] == ["0 B", "999 B", "294 kB", "64 MB", "2 GB"]
