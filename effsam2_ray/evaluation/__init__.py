"""Methods compared on pictures whose objects are known: what is run, measured and told, with no Ray."""
