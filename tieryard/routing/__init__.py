"""Routing: which deployment gets a job. Pure: features and a snapshot in, decisions out, no I/O, deterministic."""

from tieryard.routing.decide import Decision, Judged, decide, decide_many
from tieryard.routing.features import TextFeatures, text_features
from tieryard.routing.hurdles import Hurdle, Refusal
from tieryard.routing.job import JobFeatures
from tieryard.routing.profiles import Profile, pooled
from tieryard.routing.snapshot import Bounds, Candidate, Measured, PolicyRules, Rules, Snapshot, TierRules, plain
from tieryard.routing.worst_case import worst_usd

__all__ = [
    "Bounds",
    "Candidate",
    "Decision",
    "Hurdle",
    "JobFeatures",
    "Judged",
    "Measured",
    "PolicyRules",
    "Profile",
    "Refusal",
    "Rules",
    "Snapshot",
    "TextFeatures",
    "TierRules",
    "decide",
    "decide_many",
    "plain",
    "pooled",
    "text_features",
    "worst_usd",
]
