"""Base models: loading, architecture facts, fingerprints."""
