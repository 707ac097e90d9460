"""Silero VAD as a model whose state the server keeps: streams beside each other, abandoned ones, and instances that die."""
