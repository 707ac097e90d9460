"""Forecasts of arrivals, rate and burstiness: from recorded arrivals or made-up days, beside what needs no network."""
