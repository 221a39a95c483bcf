"""The front door: one file per resource, no business rules."""
