"""The whole of a call as JSON: every raw sample with the context it was taken in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from reuse_distill.devices.results import METRICS, RESULT_SCHEMA
from reuse_distill.devices.verdicts import Outcome, exit_status
from reuse_distill.report.quantities import UNITS
from reuse_distill.runtime.record import to_dict


def results_json(outcomes: Sequence[Outcome]) -> str:
    """One document; metrics are in the base units it names, `null` is unmeasured."""
    units = {name: next(iter(UNITS[metric.dimension])) or metric.dimension for name, metric in METRICS.items()}
    document: dict[str, Any] = {
        "schema": RESULT_SCHEMA,
        "exit_status": exit_status([outcome.verdict for outcome in outcomes]),
        "units": units,
        "outcomes": [to_dict(outcome) for outcome in outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
