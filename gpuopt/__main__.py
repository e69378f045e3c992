"""`python -m gpuopt`, the same as the command `gpuopt`."""

from gpuopt.cli import main

raise SystemExit(main())
