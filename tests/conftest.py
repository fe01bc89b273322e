"""Settings of the whole suite."""

from hypothesis import settings

# examples that read files or build networks take longer than Hypothesis' 200 ms on a busy machine
settings.register_profile("mtlcar", deadline=None)
settings.load_profile("mtlcar")
