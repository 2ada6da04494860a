"""`python -P -m gpushare_kernel.broker`: the broker's process."""

import sys

from gpushare_kernel.broker.daemon import main

if __name__ == "__main__":
    sys.exit(main())
