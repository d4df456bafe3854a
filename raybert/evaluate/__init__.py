"""Metrics, tables, plots and reports: numbers in, pages out, without torch and Ray."""
