"""What learning gives beside what needs none: `python -m benchmarks.learn`. Each part writes a page of its own."""
