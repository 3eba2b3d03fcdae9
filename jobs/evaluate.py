"""`effsam2 evaluate` for `ray job submit`: ``ray job submit --working-dir . -- python jobs/evaluate.py ...``."""

import sys

from effsam2_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
