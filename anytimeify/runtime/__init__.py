"""`AnytimeModel` and what it does: levels, budgets, extracts, calibration, masks, new heads, loading."""
