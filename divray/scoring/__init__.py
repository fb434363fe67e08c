"""Is a sample right, unique and new?  Signals, judges, and the stage that writes the scores."""
