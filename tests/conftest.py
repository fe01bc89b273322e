"""Settings of the whole suite."""

import os

from hypothesis import settings

# examples that read files or build networks take longer than Hypothesis' 200 ms on a busy machine
settings.register_profile("mtlcar", deadline=None)
settings.load_profile("mtlcar")

os.environ["MTLCAR_STRICT_REPORT"] = "1"  # a section that cannot be made is a fault, not a sentence
