"""The Python client of dlproxy and of other servers of the Open Inference Protocol: `dlproxy.Client`, `dlproxy.AsyncClient`."""
