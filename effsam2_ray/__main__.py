"""`python -m effsam2_ray` is the `effsam2` command."""

import sys

from effsam2_ray.cli import main

sys.exit(main())
