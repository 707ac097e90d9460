"""Tests of what runs a batch: runtimes, warm-up, gathering and cutting."""
