"""The sections of a run's page, each from the run's files alone."""
