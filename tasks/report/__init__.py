"""The verdict as a report that a person reads: one self-contained page of HTML, and a text for Prefect's pages."""
