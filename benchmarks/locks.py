"""What locks cost: dlproxy with API keys, tokens and TLS beside one without, in one run: `python -m benchmarks.locks`.

All servers share one core, wrk has another. Exits with 1 if an answer is wrong or a goal is missed. `--write` writes LOCKS.md.
"""

import http.client
import json
import ssl
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from time import time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from msgspec import Struct

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.options import add_rounds, minute, options_of, utc_now
from benchmarks.harness.processes import Child, Children, Cores, free_ports, pinned, stay_off_the_servers_core
from benchmarks.harness.running import find, wrk_is_missing
from benchmarks.harness.sample import ANSWER_SECONDS, Sample, sample_for
from benchmarks.harness.servers import READY_PATH
from benchmarks.harness.turns import beside_the_first, in_turn
from benchmarks.harness.wrk import Load, rate_and_cost, wrk_is_installed
from benchmarks.models import build_mlp
from dlproxy.wire.identity import key_file

PAGE = Path(__file__).with_name("LOCKS.md")
TITLE = "A small network, one row a request, 64 connections"
CONNECTIONS = 64
PLAIN = "no lock"
GOALS = {"API key": 0.95, "JWT": 0.93, "TLS": 0.6, "TLS and API key": None}  # of the plain one's rate
ISSUER, AUDIENCE = "https://login.example", "dlproxy"
HOUR_S = 3600.0
TLS_TABLE = '[tls]\ncert = "server.pem"'
KEY_TABLE = '[auth]\nkeys = "keys.toml"'
TOKEN_TABLES = (
    f'[auth]\njwks = "jwks.json"\njwt_issuer = "{ISSUER}"\njwt_audience = "{AUDIENCE}"\n[grants.all]\nwho = "token:*"'
)


class Side(Struct):
    """A server, and what its clients send besides the request. `rates` and `costs` (CPU seconds a request): of each round."""

    name: str
    child: Child
    port: int
    headers: tuple[str, ...]
    trust: ssl.SSLContext | None
    rates: list[float] = []
    costs: list[float] = []

    def connect(self) -> http.client.HTTPConnection:
        if self.trust is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS, context=self.trust)

    def is_ready(self) -> bool:
        with closing(self.connect()) as connection:
            try:
                connection.request("GET", READY_PATH)
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def check(self, sample: Sample) -> None:
        """Asks once. Raises BenchmarkError unless the answer is right."""
        with closing(self.connect()) as connection:
            sample.ask(connection, self.headers)
            sample.judge(connection)


def _certificate(folder: Path) -> ssl.SSLContext:
    """Writes the servers', signed by itself. Returns who trusts it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dlproxy")])
    about = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    about = about.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    shown = about.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    path = folder / "server.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + shown)
    return ssl.create_default_context(cadata=shown.decode())


def _token(folder: Path) -> str:
    """Writes the issuer's public key."""
    key = rsa.generate_private_key(65537, 2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    (folder / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "one"}]}))
    claims = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": time() + HOUR_S, "scope": "infer"}
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": "one"})


@contextmanager
def _sides(model: Path, children: Children, cores: Cores, folder: Path) -> Iterator[list[Side]]:
    """The plain one is first."""
    trust = _certificate(folder)
    key = (f"authorization: Bearer {key_file.create(folder / 'keys.toml', 'bench', scopes=['infer'], models=['*'])}",)
    token = (f"authorization: Bearer {_token(folder)}",)
    kinds: list[tuple[str, str, tuple[str, ...], ssl.SSLContext | None]] = [
        (PLAIN, "", (), None),
        ("API key", KEY_TABLE, key, None),
        ("JWT", TOKEN_TABLES, token, None),
        ("TLS", TLS_TABLE, (), trust),
        ("TLS and API key", f"{TLS_TABLE}\n{KEY_TABLE}", key, trust),
    ]
    sides = []
    for number, (name, tables, headers, trusted) in enumerate(kinds):
        port, control_port = free_ports(2)
        config = folder / f"server-{number}.toml"
        config.write_text(
            f'[server]\nhttp_port = {port}\ncontrol_port = {control_port}\n[models.{model.stem}]\npath = "{model}"\n{tables}\n'
        )
        command = [sys.executable, "-m", "dlproxy", "serve", "--config", str(config)]
        child = children.start(f"dlproxy-{number}", pinned(cores.server, command))
        sides.append(Side(name, child, port, headers, trusted))
    for side in sides:
        side.child.wait_until(side.is_ready)
    yield sides


def _round(side: Side, sample: Sample, seconds: int, cores: Cores, folder: Path) -> None:
    load = Load(CONNECTIONS, seconds, sample, headers=side.headers)
    url = f"http{'s' if side.trust else ''}://127.0.0.1:{side.port}{sample.path}"
    rate, cost = rate_and_cost(side.child, url, load, cores, folder)
    side.rates.append(rate)
    side.costs += cost


def _measure(sides: list[Side], sample: Sample, repeats: int, seconds: int, cores: Cores, folder: Path) -> Findings:
    for side in sides:  # warm-up
        side.check(sample)
        _round(side, sample, 1, cores, folder)
        side.rates, side.costs = [], []
    for number in range(repeats):
        for side in in_turn(sides, number):
            side.check(sample)
            _round(side, sample, seconds, cores, folder)
            cost = f", {side.costs[-1] * 1e6:.1f} us of CPU a request" if side.costs else ""
            print(f"  {side.name}: {side.rates[-1]:,.0f}/s{cost}", flush=True)
    findings = Findings(TITLE)
    beside_the_first(findings, sides, GOALS)
    return findings


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("locks", __doc__)
    add_rounds(parser, seconds=2, repeats=7)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(arguments)
    if not wrk_is_installed():
        return wrk_is_missing()

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        stay_off_the_servers_core(cores)
        model = build_mlp(folder / "mlp.onnx")
        with _sides(model, children, cores, folder) as sides:
            yield _measure(sides, sample_for(model), options.repeats, options.seconds, cores, folder)

    return find("locks", measure, lambda found, machine: PAGE.write_text(_page(*found, machine)) if options.write else None)


def _page(findings: Findings, machine: str) -> str:
    about = f"""\
784-256-128-10 in FP32, binary tensors over HTTP/1.1, {CONNECTIONS} connections that stay open, by wrk. Each server has the lock
that it is named for and is otherwise as it comes. Token: RS256, the same in every request: its signature is checked once. TLS
1.3 with an ECDSA certificate. Before each load the answer is compared with ONNX Runtime's. Ratios within a round, in which all
are measured in turn: medians, and the lowest to the highest."""
    lead = ["# What locks cost", "", f"`python -m benchmarks.locks` on {minute(utc_now())}; {machine}."]
    return as_page(lead, [(findings.title, about, findings.checks, findings.details)])


if __name__ == "__main__":
    sys.exit(main())
