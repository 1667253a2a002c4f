"""`pytest parity_tests/ --certificate DIR`: what a run of the ladder measured, as JSON and as a page."""
