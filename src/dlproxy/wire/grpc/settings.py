"""The methods of Triton's logging and trace extensions over gRPC. Called by services.py.

Not aware of: what settings mean.
"""

from dlproxy.protos.oip import SERVICE, oip
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.parsing import parsed
from dlproxy.wire.grpc.server import Methods
from dlproxy.wire.rights import demand
from dlproxy.wire.settings import LogSettings, TraceSettings


def setting_methods(logs: LogSettings, trace: TraceSettings) -> Methods:
    """Of inference.GRPCInferenceService. A setting without a value is left as it is."""

    def log_settings(call: Call, message: bytes) -> None:
        asked = parsed(oip.LogSettingsRequest, message)
        given = {name: (value, value.WhichOneof("parameter_choice")) for name, value in asked.settings.items()}
        logs.change({name: getattr(value, choice) if choice else None for name, (value, choice) in given.items()})
        answer = oip.LogSettingsResponse()
        for name, shown in logs.show().items():
            kind = "bool_param" if isinstance(shown, bool) else "uint32_param" if isinstance(shown, int) else "string_param"
            setattr(answer.settings[name], kind, shown)
        call.reply(answer.SerializeToString())

    def trace_setting(call: Call, message: bytes) -> None:
        asked = parsed(oip.TraceSettingRequest, message)
        demand(call.principal, "admin", asked.model_name)
        given = {name: list(value.value) for name, value in asked.settings.items()}
        trace.change({name: _value(name, values) for name, values in given.items()}, asked.model_name)
        answer = oip.TraceSettingResponse()
        for name, shown in trace.show(asked.model_name).items():
            answer.settings[name].value.extend([shown] if isinstance(shown, str) else shown)
        call.reply(answer.SerializeToString())

    return Methods({f"{SERVICE}/LogSettings".encode(): log_settings, f"{SERVICE}/TraceSetting".encode(): trace_setting}, {})


def _value(name: str, values: list[str]) -> object:
    """As JSON has it: one text, but a list of levels; None for a setting that is cleared."""
    if not values:
        return None
    return values if name == "trace_level" or len(values) > 1 else values[0]
