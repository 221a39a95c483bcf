"""The hands: one file for each thing that is done to a job on its way."""
