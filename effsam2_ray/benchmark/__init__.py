"""Measure speed and memory, beside the peers and the device's own limits; needs no Ray."""
