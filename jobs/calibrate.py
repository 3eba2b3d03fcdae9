"""`effsam2 calibrate` for `ray job submit`: ``ray job submit --working-dir . -- python jobs/calibrate.py ...``."""

import sys

from effsam2_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
