"""Feeds of fact changes: their Parquet schema, published formats, and the way into the ledger."""
