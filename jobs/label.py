"""`effsam2 label` for `ray job submit`: ``ray job submit --working-dir . -- python jobs/label.py s3://... --output s3://...``."""

import sys

from effsam2_ray.cli import main

if __name__ == "__main__":
    code = main(["label", *sys.argv[1:]])
    print(f"exit code {code}", flush=True)  # `ray job submit` itself turns every failure into 1
    sys.exit(code)
