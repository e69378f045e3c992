"""`python -m gpuopt.bench`, the same as `gpuopt bench`."""

from gpuopt.bench import main

raise SystemExit(main())
