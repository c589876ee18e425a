"""What is long done is let go of, so that a million files over the years leave everything quick."""
