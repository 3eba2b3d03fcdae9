"""Growth of a job without its work, as a table: ``python jobs/simulate.py 10000 100000``."""

import argparse

from effsam2_ray.commands.arguments import positive
from effsam2_ray.pipeline.cluster import connect, disconnect
from effsam2_ray.pipeline.simulation import Sizes, simulate, table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("num_images", nargs="+", type=positive, metavar="N")
    parser.add_argument("--image-bytes", type=positive, default=Sizes.image_bytes, help="default: %(default)s")
    parser.add_argument("--num-masks", type=positive, default=Sizes.num_masks, help="an image; default: %(default)s")
    parser.add_argument("--mask-bytes", type=positive, default=Sizes.mask_bytes, help="default: %(default)s")
    arguments = parser.parse_args()
    sizes = Sizes(arguments.image_bytes, arguments.num_masks, arguments.mask_bytes)
    own_cluster = connect(None)
    try:
        print(table([simulate(number, sizes) for number in arguments.num_images]))
    finally:
        if own_cluster:
            disconnect()
