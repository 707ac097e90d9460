"""Steps of pipelines that come with dlproxy, by the names that `call` has: STEPS says where each is.

Read by serve/pipelines/code.py. Not aware of: pipelines, requests.
"""

STEPS: dict[str, str] = {}
"""By name, "module:Class"."""
