"""One fact at a time: finding it, its whole life, and taking it back."""
