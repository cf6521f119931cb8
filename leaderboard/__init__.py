"""Run records in, a static site out: statistics and pages."""
