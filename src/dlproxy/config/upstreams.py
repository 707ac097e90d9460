"""The knobs of a model on other servers: what it shows them, and whom it trusts, for the table in knobs.py.

Not aware of: other knobs, where the servers are (node.py has who they are).
"""

from functools import partial
from typing import Annotated

from dlproxy.config.traits import Only, knob

_loaded = partial(knob, cost="reload")
_ELSEWHERE = Only("run", ("upstream",))

Headers = Annotated[
    dict[str, str], _loaded("sent to other servers with each request, such as authorization", only=(_ELSEWHERE,))
]
ApiKey = Annotated[
    str,
    _loaded(
        "where the API key for other servers is: a file, or env:NAME for a variable of the environment; empty: none",
        only=(_ELSEWHERE,),
    ),
]
Authorities = Annotated[
    str,
    _loaded(
        "file of the authorities that sign other servers' certificates (PEM); empty: those of this system", only=(_ELSEWHERE,)
    ),
]
Certificate = Annotated[
    str,
    _loaded("file of the certificate that is shown to other servers, with its chain (PEM); empty: none", only=(_ELSEWHERE,)),
]
CertificateKey = Annotated[
    str,
    _loaded("file of its private key (PEM); empty: it stands in the certificate's", only=(Only("upstream_cert", but=("",)),)),
]
