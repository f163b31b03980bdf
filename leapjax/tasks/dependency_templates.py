"""Wordings of the tasks with dependency: eight a task, of which the last two are never trained on.

Words of the unseen wordings occur in trained ones, of whatever task: what is new is the sentence.
"""

import json
from importlib.resources import files

UNSEEN = (6, 7)  # places in each task's wordings that no training uses

_TEXT = (files("leapjax") / "data" / "dependency-templates.json").read_text("utf-8")
TEMPLATES: dict[str, tuple[str, ...]] = {k: tuple(v) for k, v in json.loads(_TEXT).items()}
