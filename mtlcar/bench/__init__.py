"""Measurements of mtlcar's own speed: `mtlcar bench`."""
