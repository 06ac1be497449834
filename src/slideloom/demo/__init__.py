"""The synthetic cohort: paired H&E and 16-marker slides whose every nucleus is known."""
