"""The pilot's guard rails: one trial at a time, in turns, kept only if it helps, whatever the policy and the host do."""

from hypothesis import settings

from tests.policy.tuning.machine import Host

TestHost = Host.TestCase
TestHost.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
