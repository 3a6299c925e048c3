"""Arms x seeds: what runs, what came of it, and the page that says so."""
