"""Profiles: what is known of a model before its first request (bases of K, sensitivities).

    model = open_model(pathlib.Path("model.gguf"), cache)
    profile = make_profile(model, [open("text").read()])
    client.open_context(model.spec, profile=serialise(profile))
"""

from .make import Options, make_profile
from .model import Capture, KvModel, open_model
from .profile_file import Cell, Profile, parse, serialise

__all__ = [
    "Capture", "Cell", "KvModel", "Options", "Profile", "make_profile", "open_model", "parse",
    "serialise",
]  # fmt: skip
