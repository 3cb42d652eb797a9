"""Suites and helpers that third parties use to test their extensions of tvmx."""
