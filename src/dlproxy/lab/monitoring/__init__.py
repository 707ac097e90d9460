"""What Prometheus and Grafana need to watch a dlproxy: rules that alert, and a board, both made from its own metrics."""
