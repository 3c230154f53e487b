"""What measurements mean: percentiles with a bound, budgets, baselines, stability, heat and verdicts."""
