"""Each policy by itself: tables of cases and properties."""
