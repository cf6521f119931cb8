"""Quantised students: one file for each quantisation, and what they share."""
