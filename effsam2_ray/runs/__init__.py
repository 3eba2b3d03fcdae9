"""What is done with a finished run, with no Ray and no model: read it, check it, compare it, hand it over."""
