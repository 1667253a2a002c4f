"""Where the trainers run: plans for machines one doesn't have, and what starts a run on several devices."""
