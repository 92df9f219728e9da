"""From documents and examples to rows on the disk."""
