#!/bin/sh
# The alerts and the board of this version, which Prometheus and Grafana read.
set -eu
cd "$(dirname "$0")"
mkdir -p generated
dlproxy monitor alerts > generated/dlproxy.rules.yml
dlproxy monitor board > generated/dlproxy.json
