"""The library behind the twelve numbered scripts; see docs/ for the map."""
