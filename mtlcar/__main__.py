"""`python -m mtlcar`, the same as the console script."""

import sys

from mtlcar.cli import main

sys.exit(main())
