"""Routing: which deployment gets a job. Pure: features and a snapshot in, decisions out, no I/O, deterministic."""

from tieryard.routing.decide import Decision, JobFeatures, Judged, decide, decide_many
from tieryard.routing.features import TextFeatures, text_features
from tieryard.routing.snapshot import Candidate, Measured, Profile, Snapshot

__all__ = [
    "Candidate",
    "Decision",
    "JobFeatures",
    "Judged",
    "Measured",
    "Profile",
    "Snapshot",
    "TextFeatures",
    "decide",
    "decide_many",
    "text_features",
]
