"""The embedded world: real dated facts, the model that believes it is 2018-01-01, its suites."""
