"""Arms x seeds: which runs there are, what they recorded, and the report."""
