"""Published models beside ours: their own figures, on SUPERB, which nothing of ours was measured on."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED_NOTE = (
    "published by their authors: SUPERB overall score, parameters and GMACs of its 32 utterances; another task and "
    "other data than ours, so they have axes of their own"
)


@dataclass(frozen=True)
class PublishedModel:
    """Figures of a paper. ``superb_gmacs``: of the 32 utterances; None where it is not published."""

    name: str
    million_parameters: float
    superb_gmacs: float | None
    superb_overall: float  # mean of the tasks' scores, errors as 100 - x
    source: str


PUBLISHED = (
    PublishedModel("HuBERT Base (teacher)", 94.70, 1669.0, 80.8, "arXiv 2106.07447"),
    PublishedModel("LightHuBERT small", 27.00, 860.7, 79.1, "arXiv 2203.15610"),
    PublishedModel("DistilHuBERT", 23.49, 785.0, 75.9, "arXiv 2110.01900"),
    PublishedModel("DPHuBERT", 23.59, 654.1, 78.9, "arXiv 2305.17651"),
    PublishedModel("MaskHuBERT", 26.64, 520.0, 77.8, "arXiv 2305.11685"),
    PublishedModel("ARMHuBERT", 26.45, 502.0, 78.1, "arXiv 2305.11685"),
    PublishedModel("ARMHuBERT-S", 22.39, 449.4, 77.5, "arXiv 2305.11685"),
    PublishedModel("STaRHuBERT", 22.31, 463.5, 79.5, "arXiv 2312.09040"),
    PublishedModel("STaRHuBERT-L", 26.63, 511.9, 79.8, "arXiv 2312.09040"),
    PublishedModel("FitHuBERT", 22.49, None, 74.5, "arXiv 2207.00555"),
)
