"""The Ray job: read units, segment, merge and write, one part a unit. The only layer that imports ray."""
