"""``index.html`` of a set: every bundle, those that are not there too, and what they may cost on the device."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from reuse_distill.report.bundle_sections import macs
from reuse_distill.report.page import Badge, Html, notes, page, section, table
from reuse_distill.report.quantities import cosine_text, quantity

KINDS = {"built": "good", "deferred": "open", "refused": "bad", "left out": "open"}


def set_page(comparison: dict[str, Any]) -> str:
    """The page of a comparison, self-contained but for the links to the bundles' own reports."""
    rows, counts = comparison["bundles"], comparison["counts"]
    made = [one for one in rows if "artifact" in one]
    summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    kind = "bad" if counts["refused"] else "open" if counts["deferred"] or not made else "good"
    parts = [
        notes([*_finish(made), *_prepared(made)]),
        section("Bundles", _bundles(rows)),
        section("By level and in noise", _slices(made), where="mean frame cosine with torch") if made else "",
        section("Cost", _cost(made), badge=Badge("estimated, not measured")) if made else "",
        section("What reads them", _readable(made)) if any(one["readable_by"] for one in made) else "",
    ]
    name = comparison["source"].get("name", "student")
    return page(
        f"{name} for {comparison['title']}",
        heading=f"{name} for {comparison['title']}",
        badge=Badge(summary or "nothing made", kind),
        about=f"{' · '.join(comparison['profile']['systems'])}",
        body="".join(parts),
    )


def _bundles(rows: list[dict[str, Any]]) -> str:
    head = ("bundle", "status", "size", "largest difference", "mean cosine", "bound", "worst recording")
    names_by_note = _grouped((note, one["name"]) for one in rows for note in _notes(one))
    notes_of = [(", ".join(names), note) for note, names in names_by_note.items()]
    notes_below = f"<h3>Notes</h3>{table(('bundle', 'note'), notes_of)}" if notes_of else ""
    return table(head, [_bundle(one) for one in rows], numeric=(2, 3, 4)) + notes_below


def _bundle(one: dict[str, Any]) -> tuple[str, ...]:
    status = Html(Badge(one["status"], KINDS[one["status"]]).html())
    if "artifact" not in one:
        return (_whole(escape(one["name"])), status, "", "", "", "", "")
    link = _whole(f'<a href="{escape(one["name"])}/report.html">{escape(one["name"])}</a>{_mark(one)}')
    measured, worst = _figures(one)["measured"], _figures(one)["worst"]
    return (
        link,
        status,
        quantity(one["artifact_bytes"] or None, "bytes"),
        f"{measured['max_abs']:.2e}" if measured else "unmeasured",
        f"{measured['mean_cosine']:.5f}" if measured else "unmeasured",
        ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in (one["bound"] or {}).items()),
        worst["name"] if worst else "",
    )


def _notes(one: dict[str, Any]) -> list[str]:
    if "artifact" not in one:
        return [one["reason"]]
    preset = (one["recipe"] or {}).get("preset")
    parts = [f"preset {preset}"] if preset else []
    return [*parts, *filter(None, [one["reason"] or one["measured_by"]])]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """What is said, and of whom, in the order of first mention."""
    names_by_note: dict[str, list[str]] = {}
    for note, name in pairs:
        names_by_note.setdefault(note, []).append(name)
    return names_by_note


def _slices(made: list[dict[str, Any]]) -> str:
    names = ("soft", "loud", "noisy")
    rows = [(_title(one), *(cosine_text(_figures(one)["slices"].get(name)) for name in names)) for one in made]
    return table(("bundle", *names), rows, numeric=(1, 2, 3))


def _cost(made: list[dict[str, Any]]) -> str:
    head = ("bundle", "of", "MACs a second", "memory", "latency before computing", "real-time factor", "a step")
    body = table(head, [_costs(one) for one in made], numeric=(2, 3))
    origins = sorted({one["compute"]["origin"] for one in made if one["compute"]})
    lead = f"Computing: a roofline from {'; '.join(origins)}. " if origins else ""
    if not all(one["compute"] for one in made):
        lead += "Where it says unmeasured, the profile does not tell the rate of the unit that runs the bundle. "
    lead += "rd-latency measures on the device."
    return f'<p class="lead">{escape(lead)}</p>{body}'


def _costs(one: dict[str, Any]) -> tuple[str, ...]:
    estimates, latency, compute = one["estimates"], one["latency_ms"], one["compute"]
    step = compute["step_ms"] if compute else None
    return (
        _title(one),
        estimates["of"],
        macs(estimates["macs_per_second"]),
        quantity(estimates["memory_bytes"], "bytes"),
        f"{latency['worst']:.0f} ms worst, {latency['mean']:.0f} ms mean" if latency else "the whole utterance",
        " to ".join(quantity(value, "ratio") for value in compute["rtf"]) if compute else "unmeasured",
        " to ".join(quantity(value, "time") for value in step) if step else "unmeasured",
    )


def _readable(made: list[dict[str, Any]]) -> str:
    rows = []
    for one in made:
        answers = (("; ".join(why), release) for release, why in (one["readable_by"] or {}).items())
        for why, releases in _grouped(answers).items():
            rows.append((one["name"], ", ".join(releases), why or "yes, as far as is known without a GPU"))
    return table(("bundle", "JetPack", "will build it"), rows)


def _finish(made: list[dict[str, Any]]) -> list[str]:
    names = [one["name"] for one in made if one["status"] == "deferred"]
    return [f"{', '.join(names)}: deferred; on the device, rd-export --finish and the bundle's folder"] if names else []


def _prepared(made: list[dict[str, Any]]) -> list[str]:
    """What stands in the rows of deferred bundles."""
    runs = _grouped((one["prepared"]["run"], one["name"]) for one in made if one["prepared"])
    return [
        f"{', '.join(names)} (prepared graph): differences and size are those of {run}; the engine is unmeasured"
        for run, names in runs.items()
    ]


def _figures(one: dict[str, Any]) -> dict[str, Any]:
    """What was compared: the artifact, or what was prepared for the device to build it from."""
    compared: dict[str, Any] = one["prepared"] or one
    return compared


def _title(one: dict[str, Any]) -> str:
    return f"{one['name']}{_mark(one)}"


def _mark(one: dict[str, Any]) -> str:
    return " (prepared graph)" if one["prepared"] else ""


def _whole(markup: str) -> Html:
    """Without a line break."""
    return Html(f'<span style="white-space:nowrap">{markup}</span>')
