"""The demonstration weights: procedural scenes, training, measurement and the shipped files."""
