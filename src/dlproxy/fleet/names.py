"""What instances are called: the model's name and a number, which says whose place it is on devices and cores.

Used by everything in fleet/ and by lab/simulate.
"""


def instance_name(model: str, number: int) -> str:
    """As clients of the control port, logs and the event log have it."""
    return f"{model}-{number}"


def number_of(instance: str) -> int:
    """The number in a name that `instance_name` has made."""
    return int(instance.rpartition("-")[2])


def instance_names(model: str, count: int) -> list[str]:
    """The first `count`."""
    return [instance_name(model, number) for number in range(count)]
