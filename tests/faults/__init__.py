"""Faults that nothing acknowledged may be lost by: docs/reliability.md."""
