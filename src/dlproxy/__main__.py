"""`python -m dlproxy` is `dlproxy`."""

from dlproxy.cli import main

raise SystemExit(main())
