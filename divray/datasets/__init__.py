"""Real data: one reader a format, the task made of it, and the stage that puts it into a run."""
