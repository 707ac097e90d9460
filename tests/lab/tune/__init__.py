"""Tests of lab/tune."""
