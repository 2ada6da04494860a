"""`python -P -m gpushare_kernel.broker`: the broker's process."""

import sys

from gpushare_kernel.broker.left_over import resume_at_once

if __name__ == "__main__":
    # All that a broker is made of takes several times as long to load, seconds on a busy machine: they stand still meanwhile.
    resumed = resume_at_once()
    from gpushare_kernel.broker.daemon import main

    sys.exit(main(resumed=resumed))
